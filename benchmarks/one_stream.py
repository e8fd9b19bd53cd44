"""One stream beside llama.cpp: the same weights, the same prompt, in one run, in turns.

    pip install llama-cpp-python gguf      # builds llama.cpp from source, some minutes
    python benchmarks/one_stream.py [--models nano llama-85m] [--rounds 5]

llama.cpp through its Python API (greedy, 64 tokens after 64) with float32 and Q8_0 weights; our
engine through `LLM` in float32 and int8. What counts is the time of a token after the first. The
greedy tokens of both must be equal in float32, or the comparison is void.
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

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.gguf_export import export
from benchmarks.limits import read_bandwidth, weight_bytes_per_step
from benchmarks.models import cache_folder, model_folder
from benchmarks.prompts import exact_prompt
from benchmarks.provenance import Provenance
from benchmarks.results import write
from penstock import LLM, SamplingParams
from penstock.server.bench.report import plain_table

OUTPUT: Final = Path(__file__).resolve().parent / "results" / "one_stream.csv"
PROMPT_TOKENS: Final = 64
Stream = Callable[[Sequence[int], int], list[int]]
"""Prompt ids and a number of tokens to the tokens that follow, greedily."""


def main() -> int:
    """Measure, print, write; 1 where the two do not compute the same."""
    options = _parse()
    torch.set_num_threads(options.threads)
    lines: list[dict[str, Any]] = []
    for name in options.models:
        folder = model_folder(name)
        streams = {
            "penstock float32": ours(folder, "none", options.threads),
            "llama.cpp float32": llama_cpp(folder, "f32", options.threads),
            "penstock int8": ours(folder, "int8", options.threads),
            "llama.cpp q8_0": llama_cpp(folder, "q8_0", options.threads),
        }
        times_s: dict[str, list[float]] = {stream: [] for stream in streams}
        for number, prompt in enumerate(prompts(folder, options.rounds + 1)):
            said: dict[str, list[int]] = {}
            for stream, generate in streams.items():
                first_s, _ = timed(generate, prompt, 1)
                all_s, said[stream] = timed(generate, prompt, options.tokens)
                if number:  # the first round is a warm-up
                    times_s[stream].append((all_s - first_s) / (options.tokens - 1))
            if said["penstock float32"] != said["llama.cpp float32"]:
                print(f"{name}: greedy tokens differ; no result")
                return 1
        lines += table(name, folder, times_s)
    header = list(lines[0])
    print("\n".join(plain_table([header, *([_shown(v) for v in x.values()] for x in lines)])))
    write(options.output, lines, Provenance.now("torch", "transformers", "llama-cpp-python"))
    return 0


def prompts(folder: Path, count: int) -> list[list[int]]:
    """Prompts of 64 tokens."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    source = Random(0)

    def encode(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    return [encode(exact_prompt(encode, PROMPT_TOKENS, source)) for _ in range(count)]


def timed(generate: Stream, prompt: Sequence[int], count: int) -> tuple[float, list[int]]:
    """Seconds, and the tokens."""
    begun_s = time.perf_counter()
    found = generate(prompt, count)
    return time.perf_counter() - begun_s, found


def ours(folder: Path, quantization: str, threads: int) -> Stream:
    """Our engine, prefix cache off, so that every call reads its prompt."""
    llm = LLM(
        str(folder),
        dtype="float32",
        quantization=quantization,
        threads=threads,
        prefix_cache=False,
        kv_cache_memory=2**28,
    )

    def generate(prompt: Sequence[int], count: int) -> list[int]:
        params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
        (answer,) = llm.generate([list(prompt)], params)
        return answer.choices[0].token_ids

    return generate


def llama_cpp(folder: Path, kind: str, threads: int) -> Stream:
    """llama.cpp through its Python API."""
    path = cache_folder() / f"{folder.parent.name}-{folder.name}-{kind}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    export(folder, path, kind)
    llm: Any = import_module("llama_cpp").Llama(
        str(path), n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def generate(prompt: Sequence[int], count: int) -> list[int]:
        llm.reset()
        found: list[int] = []
        for token in llm.generate(list(prompt), temp=0.0, top_k=1, repeat_penalty=1.0):
            found.append(int(token))
            if len(found) == count:
                return found
        return found

    return generate


def table(name: str, folder: Path, times_s: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One line a stream: time of a token after the first, and llama.cpp's over ours."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights_bytes = weight_bytes_per_step(model)
    limit_s = weights_bytes / read_bandwidth(weights_bytes, torch.device("cpu"))
    lines: list[dict[str, Any]] = []
    for stream, spent_s in times_s.items():
        other = times_s[stream.replace("penstock", "llama.cpp").replace("int8", "q8_0")]
        pairs = zip(spent_s, other, strict=True)
        lines.append(
            {
                "model": name,
                "stream": stream,
                "tokens_per_s": 1 / statistics.median(spent_s),
                "ms_per_token": statistics.median(spent_s) * 1e3,
                "speed_over_llama_cpp": statistics.median(theirs / mine for mine, theirs in pairs),
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
