"""Hybrids and mixtures beside transformers: prompt and decoding speed, and the parts of a step.

    python benchmarks/model_kinds.py [--models hybrid-109m mixture-112m] [--concurrency 1 4 16]
        [--dtype float32 | bfloat16]

Both run in this process, with the same prompts, in turns within a round; transformers by continuous
batching, or by `generate` with a batch where that refuses the model, and computes in `--dtype`.
Penstock computes in float32 with the checkpoints' weights of 16 bits. A ratio is
Penstock's tokens/s over transformers' of that round; the tables have medians. The time to read the
prompts is that of an answer of one token, or for continuous batching, which starts anew for each
batch, the time from its first prompt's beginning to the last first token; decoding is what follows.
transformers gets all threads, Penstock those that it has chosen. Parts are shares of a decoding
step: compiled functions by name, and the rest, which is torch and Python.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks import results
from benchmarks.models import model_folder
from benchmarks.provenance import Provenance
from benchmarks.stopwatch import Stopwatch
from penstock import LLM, SamplingParams
from penstock.bench.report import plain_table
from penstock.kernels.native.library import Library, library

OUTPUT = Path(__file__).resolve().parent / "results" / "model_kinds.csv"
COMPILED = {
    "linear": "linear layers",
    "grouped": "experts",
    "delta": "gated delta rule",
    "state_space": "Mamba 2",
    "scan": "Mamba",
    "convolve": "convolutions",
    "paged_attention": "attention",
}
"""Parts of a step by the compiled functions."""
Generate = Callable[[list[list[int]], int], None]
"""Answers prompts of equal length with so many tokens each."""
Timed = Callable[[list[list[int]], int], "Speed"]
"""Answers prompts of equal length with one token and so many more each, and says how fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens/s of all streams together."""

    prompt: float
    decoding: float


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    lines: list[dict[str, Any]] = []
    for name in options.models:
        lines += measure(name, options)
    columns = list(lines[0])
    cells = [[str(line[name]) for name in columns] for line in lines]
    print("\n".join(plain_table([columns, *cells])))
    key = ("model", "streams", "beside")
    results.merge(options.output, lines, Provenance.now("torch", "transformers"), key)
    return 0


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All lines of one model."""
    folder = str(model_folder(name))
    watch = Stopwatch(lambda: None)
    _time_compiled(watch)
    threads = torch.get_num_threads()
    llm = LLM(folder, prefix_cache=False, kv_cache_memory=options.kv_cache_memory)
    chosen = torch.get_num_threads()
    theirs, how = _transformers(folder, options.dtype)
    lines: list[dict[str, Any]] = []
    for streams in options.concurrency:
        rounds: list[tuple[Speed, Speed]] = []
        parts: list[dict[str, float]] = []
        for number in range(options.rounds + 1):
            source = random.Random(f"{name} {streams} {number}")
            prompts = [
                [source.randrange(3, 30_000) for _ in range(options.prompt_tokens)]
                for _ in range(streams)
            ]
            torch.set_num_threads(chosen)
            ours = _speed(_of(llm), prompts, options.tokens)
            parts.append(_parts(llm, watch, prompts, options.tokens))
            torch.set_num_threads(threads)
            rounds.append((ours, theirs(prompts, options.tokens)))
        del rounds[0], parts[0]  # the first warms up
        lines.append(_line(name, streams, how, rounds, parts))
        print(lines[-1], flush=True)
    return lines


def _line(
    name: str,
    streams: int,
    how: str,
    rounds: Sequence[tuple[Speed, Speed]],
    parts: Sequence[dict[str, float]],
) -> dict[str, Any]:
    median = statistics.median
    return {
        "model": name,
        "streams": streams,
        "beside": how,
        "decoding_tokens_per_s": median(ours.decoding for ours, _ in rounds),
        "decoding_ratio": median(ours.decoding / other.decoding for ours, other in rounds),
        "prompt_tokens_per_s": median(ours.prompt for ours, _ in rounds),
        "prompt_ratio": median(ours.prompt / other.prompt for ours, other in rounds),
        **{
            f"{part}_share".replace(" ", "_").lower(): median(each[part] for each in parts)
            for part in (*COMPILED.values(), "rest")
        },
    }


def _speed(generate: Generate, prompts: list[list[int]], tokens: int) -> Speed:
    begun_s = time.perf_counter()
    generate(prompts, 1)
    read_s = time.perf_counter() - begun_s
    begun_s = time.perf_counter()
    generate(prompts, 1 + tokens)
    decode_s = time.perf_counter() - begun_s - read_s
    return Speed(prompt=sum(map(len, prompts)) / read_s, decoding=len(prompts) * tokens / decode_s)


def _of(llm: LLM) -> Generate:
    def generate(prompts: list[list[int]], tokens: int) -> None:
        params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        llm.generate(prompts, params, use_tqdm=False)

    return generate


def _transformers(folder: str, dtype: str) -> tuple[Timed, str]:
    """transformers' way, and its name."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def continuous(prompts: list[list[int]], tokens: int) -> Speed:
        config = GenerationConfig(
            max_new_tokens=1 + tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        found = list(
            model.generate_batch(
                prompts, generation_config=config, record_timestamps=True, progress_bar=False
            ).values()
        )
        short = [each for each in found if len(each.generated_tokens) != 1 + tokens]
        if len(found) != len(prompts) or short:
            raise RuntimeError("continuous batching did not answer all prompts")
        read_s = max(each.timestamps[0] for each in found)
        begun_s = min(each.lifespan[0] for each in found)
        ended_s = max(each.timestamps[-1] for each in found)
        return Speed(
            prompt=sum(map(len, prompts)) / (read_s - begun_s),
            decoding=len(prompts) * tokens / (ended_s - read_s),
        )

    @torch.inference_mode()
    def batch(prompts: list[list[int]], tokens: int) -> None:
        ids = torch.tensor(prompts)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        if out.shape[1] != ids.shape[1] + tokens:
            raise RuntimeError("generate did not answer in full")

    try:
        continuous([[5, 6, 7]], 2)
    except Exception as error:
        print(f"continuous batching refuses this model ({type(error).__name__}): generate instead")
        return partial(_speed, batch), f"generate, {dtype}"
    return continuous, f"continuous batching, {dtype}"


def _time_compiled(watch: Stopwatch) -> None:
    """Time the compiled functions, wherever layers that are made from now on call them."""
    found = library()
    if not isinstance(found, Library):
        raise RuntimeError(f"there are no compiled kernels: {found.reason}")
    for function, part in COMPILED.items():
        call = getattr(found.call, function)
        call = getattr(call, "__wrapped__", call)
        setattr(found.call, function, watch.wrap(part, call))


def _parts(llm: LLM, watch: Stopwatch, prompts: list[list[int]], tokens: int) -> dict[str, float]:
    """Shares of the decoding steps' time."""
    generate = _of(llm)
    spent: list[dict[str, float]] = []
    for count in (1, 1 + tokens):
        watch.lap()
        begun_s = time.perf_counter()
        generate(prompts, count)
        spent.append(watch.lap() | {"all": time.perf_counter() - begun_s})
    names = ("all", *COMPILED.values())
    decoding = {name: spent[1].get(name, 0.0) - spent[0].get(name, 0.0) for name in names}
    shares = {part: decoding[part] / decoding["all"] for part in COMPILED.values()}
    return shares | {"rest": 1 - sum(shares.values())}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Hybrids and mixtures beside transformers.")
    parser.add_argument("--models", nargs="+", default=["hybrid-109m", "mixture-112m"])
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--kv-cache-memory", type=float, default=2e9)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
