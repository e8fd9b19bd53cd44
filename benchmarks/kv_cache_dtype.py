"""What --kv-cache-dtype costs and gains: memory, perplexity, greedy text and the time of a step.

    python benchmarks/kv_cache_dtype.py [--model PATH] [--context 1024] [--windows 24]

Perplexity is of held-out stories, as in `perplexity.py`, every token's key and value read back from
the cache. Greedy text continues their beginnings, and is compared with that of `auto`. Steps decode
with so much context in every sequence; the dtypes take turns, round after round.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from itertools import takewhile
from pathlib import Path
from random import Random
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.perplexity import STORY_COUNT
from benchmarks.provenance import ROOT, Provenance
from benchmarks.results import write
from penstock import LLM, SamplingParams
from penstock.bench.report import plain_table
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.requests.input import Input
from penstock.models.nano.abilities import storytelling
from penstock.server.commands.perplexity import perplexity, windows_of

OUTPUT: Final = ROOT / "benchmarks" / "results" / "kv_cache_dtype.csv"
DTYPES: Final = ("auto", "bf16", "int8", "fp8")
POOL_BYTES: Final = 2**28
PROMPT_TOKENS: Final = 64


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    rng = Random("perplexity")
    text = "\n\n".join(storytelling.plain(rng, "held_out") for _ in range(STORY_COUNT))
    times = step_times(options, text)
    lines: list[dict[str, Any]] = []
    exact: list[list[int]] = []
    for dtype in DTYPES:
        llm = _llm(options, dtype)
        windows = windows_of(llm, text, window=options.context, most=options.windows)
        answers = greedy(llm, text, options)
        exact = exact or answers
        per_token = llm.kv_cache_bytes_per_token
        line: dict[str, Any] = {
            "model": llm.info.id,
            "model_dtype": llm.info.dtype,
            "kv_cache_dtype": dtype,
            "bytes_per_token": per_token,
            "perplexity": perplexity(llm, windows),
            "perplexity_tokens": sum(len(window) - 1 for window in windows),
            "greedy_answers": len(answers),
            "greedy_tokens_each": options.new_tokens,
            "greedy_equal_share": statistics.mean(
                [ours == theirs for ours, theirs in zip(answers, exact, strict=True)]
            ),
            "greedy_equal_tokens_share": statistics.mean(
                [_agreed(*pair) / options.new_tokens for pair in zip(answers, exact, strict=True)]
            ),
            "context_tokens": options.context,
        }
        for sequences in options.sequences:
            step_s = times[dtype, sequences]
            ratios = [
                ours / auto for ours, auto in zip(step_s, times["auto", sequences], strict=True)
            ]
            line[f"step_{sequences}_p50_ms"] = statistics.median(step_s) * 1e3
            line[f"step_{sequences}_ratio_to_auto"] = statistics.median(ratios)
        lines.append(line)
    for line in lines:
        line["perplexity_ratio"] = line["perplexity"] / lines[0]["perplexity"]
    print(
        "\n".join(plain_table([list(lines[0]), *([_shown(v) for v in x.values()] for x in lines)]))
    )
    write(options.output, lines, Provenance.now("torch", "transformers"))
    return 0


def step_times(options: argparse.Namespace, text: str) -> dict[tuple[str, int], list[float]]:
    """Seconds of steps by dtype and number of sequences: the median of each round."""
    engines = {
        dtype: build_engine(
            EngineConfig(model=options.model, kv_cache_memory=POOL_BYTES, kv_cache_dtype=dtype),
            time.perf_counter,
        )
        for dtype in DTYPES
    }
    ids = list(engines["auto"].input_processor.tokenizer.encode(text))
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for number in range(options.rounds + 1):
        for sequences in options.sequences:
            prompts = [
                ids[start : start + options.context] for start in range(0, 97 * sequences, 97)
            ]
            for dtype, built in engines.items():
                median_s = statistics.median(steps(built, prompts, options.steps, f"{number}"))
                if number:  # the first round warms up
                    found[dtype, sequences].append(median_s)
    return found


def steps(built: Built, prompts: list[list[int]], count: int, name: str) -> list[float]:
    """Read prompts, then decode: seconds of `count` steps of one token for each."""
    params = SamplingParams(temperature=0.0, ignore_eos=True)  # until they are aborted
    names = [f"{name}-{len(prompts)}-{i}" for i in range(len(prompts))]
    for request_id, prompt in zip(names, prompts, strict=True):
        built.engine.add(
            built.input_processor.prepare(
                Input(request_id=request_id, prompt=prompt, params=params)
            )
        )
    begun: set[str] = set()
    while len(begun) < len(prompts):
        begun |= {output.request_id for output in built.engine.step()}
    seconds: list[float] = []
    for _ in range(count):
        start_s = time.perf_counter()
        outputs = built.engine.step()
        seconds.append(time.perf_counter() - start_s)
        assert len(outputs) == len(prompts), "every sequence decodes in every step"
    for request_id in names:
        built.engine.abort(request_id)
    return seconds


def greedy(llm: LLM, text: str, options: argparse.Namespace) -> list[list[int]]:
    """Answers, greedily, to beginnings that lie evenly in the text."""
    ids = list(llm.tokenizer.encode(text))
    stride = (len(ids) - PROMPT_TOKENS) // options.answers
    prompts = [ids[i * stride : i * stride + PROMPT_TOKENS] for i in range(options.answers)]
    params = SamplingParams(max_tokens=options.new_tokens, temperature=0.0, ignore_eos=True)
    return [answer.outputs[0].token_ids for answer in llm.generate(prompts, params, use_tqdm=False)]


def _agreed(ours: list[int], theirs: list[int]) -> int:
    """Tokens before the first difference."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=True))))


def _llm(options: argparse.Namespace, dtype: str) -> LLM:
    return LLM(options.model, kv_cache_memory=POOL_BYTES, kv_cache_dtype=dtype)


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--model", help="folder of a model; default: the embedded one")
    parser.add_argument("--context", type=int, default=1024, help="tokens, of windows and of steps")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--sequences", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
