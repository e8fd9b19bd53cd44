"""Decoding beside llama.cpp: the same weights, the same prompts, in one run, in turns.

    pip install llama-cpp-python gguf      # builds llama.cpp from source, some ten minutes
    python benchmarks/beside_llama_cpp.py [--models nano llama-85m] [--streams 1 4 16] [--rounds 5]

llama.cpp through its C interface, all streams in one batch a step (greedy, 64 tokens after 64),
with float32 and Q8_0 weights; our engine through `LLM` in float32 and int8. What counts is the time
of a step after the first. In float32 greedy tokens of both must be equal, in nine of ten streams at
least (random models have near ties), or there is no result.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.gguf_export import export
from benchmarks.limits import read_bandwidth, weight_bytes_per_step
from benchmarks.models import cache_folder, model_folder
from benchmarks.prompts import exact_prompt
from benchmarks.provenance import Provenance
from benchmarks.results import write
from penstock import LLM, SamplingParams
from penstock.bench.report import plain_table

OUTPUT: Final = Path(__file__).resolve().parent / "results" / "beside_llama_cpp.csv"
PROMPT_TOKENS: Final = 64
LEAST_EQUAL: Final = 0.9
Prompts = Sequence[Sequence[int]]
Generate = Callable[[Prompts, int], list[list[int]]]
"""Prompts and a number of tokens to the tokens that follow each, greedily."""


def main() -> int:
    """Measure, print, write; 1 where the two do not compute the same."""
    options = _parse()
    torch.set_num_threads(options.threads)
    lines: list[dict[str, Any]] = []
    for name in options.models:
        folder = model_folder(name)
        servers = {
            "penstock float32": ours(folder, "none", options.threads),
            "llama.cpp float32": llama_cpp(folder, "f32", options),
            "penstock int8": ours(folder, "int8", options.threads),
            "llama.cpp q8_0": llama_cpp(folder, "q8_0", options),
        }
        for streams in options.streams:
            times_s, equal = compared(servers, folder, streams, options)
            if equal < LEAST_EQUAL:
                print(f"{name}, {streams} streams: tokens are equal in {equal:.0%} only; no result")
                return 1
            lines += [
                line | {"equal_streams": equal} for line in table(name, streams, folder, times_s)
            ]
    header = list(lines[0])
    print("\n".join(plain_table([header, *([_shown(v) for v in x.values()] for x in lines)])))
    write(options.output, lines, Provenance.now("torch", "transformers", "llama-cpp-python"))
    return 0


def compared(
    servers: dict[str, Generate], folder: Path, streams: int, options: argparse.Namespace
) -> tuple[dict[str, list[float]], float]:
    """Seconds of a step after the first, by round; share of streams with equal greedy tokens."""
    same = 0
    times_s: dict[str, list[float]] = {server: [] for server in servers}
    source = iter(prompts(folder, streams * (options.rounds + 1)))
    for number in range(options.rounds + 1):
        here = [next(source) for _ in range(streams)]
        said: dict[str, list[list[int]]] = {}
        for server, generate in servers.items():
            first_s = min(timed(generate, here, 1)[0] for _ in range(3))
            all_s, said[server] = timed(generate, here, options.tokens)
            if number:  # the first round is a warm-up
                times_s[server].append((all_s - first_s) / (options.tokens - 1))
        both = zip(said["penstock float32"], said["llama.cpp float32"], strict=True)
        same += sum(ours == theirs for ours, theirs in both)
    return times_s, same / (streams * (options.rounds + 1))


def prompts(folder: Path, count: int) -> list[list[int]]:
    """Prompts of 64 tokens."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    source = Random(0)

    def encode(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    return [encode(exact_prompt(encode, PROMPT_TOKENS, source)) for _ in range(count)]


def timed(generate: Generate, prompts: Prompts, count: int) -> tuple[float, list[list[int]]]:
    """Seconds, and the tokens."""
    begun_s = time.perf_counter()
    found = generate(prompts, count)
    return time.perf_counter() - begun_s, found


def ours(folder: Path, quantization: str, threads: int) -> Generate:
    """Our engine, prefix cache off, so that every call reads its prompts."""
    llm = LLM(
        str(folder),
        dtype="float32",
        quantization=quantization,
        threads=threads,
        prefix_cache=False,
        kv_cache_memory=2**28,
    )

    def generate(prompts: Prompts, count: int) -> list[list[int]]:
        params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
        answers = llm.generate([list(prompt) for prompt in prompts], params, use_tqdm=False)
        return [answer.outputs[0].token_ids for answer in answers]

    return generate


def llama_cpp(folder: Path, kind: str, options: argparse.Namespace) -> Generate:
    """llama.cpp: a context for the most streams, one batch a step, numpy for the greedy choice."""
    path = cache_folder() / f"{folder.parent.name}-{folder.name}-{kind}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    export(folder, path, kind)
    api: Any = import_module("llama_cpp")
    import_module("llama_cpp._logger").set_verbose(False)
    streams, length = max(options.streams), PROMPT_TOKENS + options.tokens
    model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
    wanted = api.llama_context_default_params()
    wanted.n_ctx, wanted.n_seq_max = 2 * streams * length, streams
    wanted.n_batch = wanted.n_ubatch = streams * PROMPT_TOKENS
    wanted.n_threads = wanted.n_threads_batch = options.threads
    if kind == "f32":  # or its cache would be in 16 bits, and near ties fall otherwise
        wanted.type_k = wanted.type_v = 0
    context = api.llama_init_from_model(model, wanted)
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    batch = api.llama_batch_init(streams * PROMPT_TOKENS, 0, 1)

    def decode(rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """(token, position, stream, whether it is the stream's last) to the tokens that follow."""
        batch.n_tokens = len(rows)
        for row, (token, position, stream, last) in enumerate(rows):
            batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, position, 1
            batch.seq_id[row][0], batch.logits[row] = stream, last
        assert api.llama_decode(context, batch) == 0
        at = [row for row, (*_, last) in enumerate(rows) if last]
        logits = (api.llama_get_logits_ith(context, row) for row in at)
        return [int(np.ctypeslib.as_array(each, (vocabulary,)).argmax()) for each in logits]

    def generate(prompts: Prompts, count: int) -> list[list[int]]:
        api.llama_memory_clear(api.llama_get_memory(context), True)
        rows = [
            (token, at, stream, at == len(prompt) - 1)
            for stream, prompt in enumerate(prompts)
            for at, token in enumerate(prompt)
        ]
        newest = decode(rows)
        found = [[token] for token in newest]
        for step in range(count - 1):
            at = PROMPT_TOKENS + step
            newest = decode([(token, at, stream, True) for stream, token in enumerate(newest)])
            for tokens, token in zip(found, newest, strict=True):
                tokens.append(token)
        return found

    return generate


def table(
    name: str, streams: int, folder: Path, times_s: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """One line a server: time of a step after the first, and llama.cpp's over ours."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights_bytes = weight_bytes_per_step(model)
    limit_s = weights_bytes / read_bandwidth(weights_bytes, torch.device("cpu"))
    lines: list[dict[str, Any]] = []
    for server, spent_s in times_s.items():
        other = times_s[server.replace("penstock", "llama.cpp").replace("int8", "q8_0")]
        ratios = [theirs / mine for mine, theirs in zip(spent_s, other, strict=True)]
        lines.append(
            {
                "model": name,
                "streams": streams,
                "server": server,
                "tokens_per_s": streams / statistics.median(spent_s),
                "ms_per_step": statistics.median(spent_s) * 1e3,
                "speed_over_llama_cpp": statistics.median(ratios),
                "least_over_llama_cpp": min(ratios),
                "most_over_llama_cpp": max(ratios),
                "float32_weights_read_once_ms": limit_s * 1e3,
                "rounds": len(spent_s),
            }
        )
    return lines


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["nano", "llama-4.6m", "llama-85m"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
