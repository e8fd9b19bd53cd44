"""The whole engine on a GPU: tokens a second of a random Llama of 1.1 billion parameters.

    python benchmarks/gpu_engine.py [--cases plain-16 plain-16-no-graphs] [--rounds 5]

Decoding alone, all prompts read before, in turns: at 1, 16 and 64 sequences with and without CUDA
graphs, with Jacobi windows, with prompts of 8,192 tokens under the full cache and H2O at 20%.
Beside each stands what reading weights, keys and values once a step would allow. Last, prompts and
answers together, beside transformers' continuous batching in the same run. Ends with status 2 where
there is no CUDA device.
"""

import argparse
import gc
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks.limits import read_bandwidth, synchroniser
from benchmarks.models import long_model_folder
from benchmarks.provenance import ROOT, Provenance, graphics_driver
from benchmarks.results import write
from penstock import SamplingParams
from penstock.bench.report import plain_table
from penstock.bench.statistics import percentile
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.requests.input import Input
from penstock.registry import Spec

OUTPUT: Final = ROOT / "benchmarks" / "results" / "gpu_engine.csv"
POSITIONS: Final = 16_384
JACOBI: Final[dict[str, Any]] = {"jacobi": {"window": 8, "adaptive": False}}
H2O: Final[dict[str, Any]] = {"h2o": {"heavy": 0.1, "recent": 0.1}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """So many sequences with prompts of so many tokens, and the methods of their requests."""

    sequences: int
    prompt_tokens: int = 128
    graphs: bool = True
    decoding: Spec = None
    kv_cache: Spec = None


CASES: Final = {
    **{f"plain-{n}": Case(sequences=n) for n in (1, 16, 64)},
    **{f"plain-{n}-no-graphs": Case(sequences=n, graphs=False) for n in (1, 16, 64)},
    **{f"jacobi-{n}": Case(sequences=n, decoding=JACOBI) for n in (1, 16)},
    "long-full": Case(sequences=16, prompt_tokens=8192),
    "long-h2o": Case(sequences=16, prompt_tokens=8192, kv_cache=H2O),
}


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    if options.device == "cuda" and not torch.cuda.is_available():
        told = "benchmarks/gpu_engine.py measures a GPU, and torch sees no CUDA device"
        print(told, file=sys.stderr)
        return 2
    folder = long_model_folder(options.model, POSITIONS)
    # The rest is for transformers.
    config = EngineConfig(
        model=str(folder), device=options.device, prefix_cache=False, kv_cache_memory=0.3
    )
    built = build_engine(config, time.perf_counter)
    found: dict[str, list[float]] = {name: [] for name in options.cases}
    for number in range(options.rounds + 1):
        for name in options.cases:
            rate = decoding_rate(built, CASES[name], options.steps, seed=number)
            if number:  # the first round warms up
                found[name].append(rate)
    # Embedding and output are one matrix, so that a step reads everything.
    weights_bytes = sum(parameter.nbytes for parameter in built.loaded.model.parameters())
    bytes_per_s = read_bandwidth(weights_bytes, built.loaded.device)
    lines: list[dict[str, Any]] = []
    for name, rates in found.items():
        case = CASES[name]
        context_tokens = case.prompt_tokens + options.steps // 2
        limit = bandwidth_limit(
            bytes_per_s,
            weights_bytes=weights_bytes,
            kv_bytes=built.engine.bytes_per_token * context_tokens,
            sequences=case.sequences,
        )
        lines.append(line(name, case, rates, options.steps, limit))
    lines += _beside(built, folder, options)
    shown = [[_shown(value) for value in each.values()] for each in lines]
    print("\n".join(plain_table([list(lines[0]), *shown])))
    gpu = options.device == "cuda"
    where = {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "driver": graphics_driver() if gpu else None,
    }
    write(options.output, [each | where for each in lines], Provenance.now("torch", "transformers"))
    return 0


def decoding_rate(built: Built, case: Case, steps: int, *, seed: int) -> float:
    """Tokens a second of so many steps in which every sequence decodes."""
    engine, runner = built.engine, built.engine.runner
    graphs = runner.graphs
    runner.graphs = graphs if case.graphs else None
    # Drafts may bring several tokens a step; nothing may end.
    room = steps * (9 if case.decoding else 1) + 64
    names = _submit(built, case, seed, max_tokens=room)
    try:
        begun: set[str] = set()
        while len(begun) < case.sequences:
            begun |= {output.request_id for output in engine.step()}
        synchronise = synchroniser(built.loaded.device)
        synchronise()
        begun_s = time.perf_counter()
        tokens = sum(len(out.token_ids) for _ in range(steps) for out in engine.step())
        synchronise()
        return tokens / (time.perf_counter() - begun_s)
    finally:
        runner.graphs = graphs
        for name in names:
            engine.abort(name)


def line(
    name: str, case: Case, rates: Sequence[float], steps: int, limit: float | None
) -> dict[str, Any]:
    """Percentiles of a case, and the share of what memory would allow, of decoding."""
    ordered = sorted(rates)
    return {
        "case": name,
        "sequences": case.sequences,
        "prompt_tokens": case.prompt_tokens,
        "steps": steps,
        "p20_tokens_per_s": percentile(ordered, 20),
        "p50_tokens_per_s": percentile(ordered, 50),
        "p80_tokens_per_s": percentile(ordered, 80),
        "full_cache_limit_tokens_per_s": limit,
        "share_of_limit": None if limit is None else percentile(ordered, 50) / limit,
    }


def bandwidth_limit(
    bytes_per_s: float, *, weights_bytes: int, kv_bytes: int, sequences: int
) -> float:
    """Tokens a second where a step reads the weights once and each sequence's keys and values.

    `kv_bytes`: of one sequence, every key kept; methods that keep fewer, or bring more tokens a
    step, may exceed it.
    """
    return sequences * bytes_per_s / (weights_bytes + sequences * kv_bytes)


def _beside(built: Built, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Prompts and answers together: this engine, then transformers' continuous batching."""
    case = Case(sequences=options.beside)
    if not case.sequences:
        return []
    rates = {"answers": [_answers_rate(built, case, options.steps) for _ in range(options.rounds)]}
    if options.device == "cuda":
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=built.loaded.dtype)
        model.to(built.loaded.device).eval()
        generation = GenerationConfig(
            max_new_tokens=options.steps, do_sample=False, eos_token_id=-1
        )
        rates["answers-transformers"] = [
            _rate_of_transformers(model, _prompts(built, case, seed), generation)
            for seed in range(options.rounds)
        ]
        del model
        gc.collect()
    return [line(name, case, found, options.steps, None) for name, found in rates.items()]


def _answers_rate(built: Built, case: Case, tokens: int) -> float:
    _submit(built, case, 0, max_tokens=tokens)
    begun_s = time.perf_counter()
    count = 0
    while built.engine.has_work:
        count += sum(len(output.token_ids) for output in built.engine.step())
    return count / (time.perf_counter() - begun_s)


def _rate_of_transformers(model: Any, prompts: list[list[int]], generation: Any) -> float:
    begun_s = time.perf_counter()
    found = model.generate_batch(prompts, generation_config=generation)
    count = sum(len(one.generated_tokens) for one in found.values())
    return count / (time.perf_counter() - begun_s)


def _submit(built: Built, case: Case, seed: int, *, max_tokens: int) -> list[str]:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    names: list[str] = []
    for number, prompt in enumerate(_prompts(built, case, seed)):
        request = built.input_processor.prepare(
            Input(
                request_id=f"{seed}-{number}",
                prompt=prompt,
                params=params,
                decoding=case.decoding,
                kv_cache=case.kv_cache,
            )
        )
        built.engine.add(request)
        names.append(request.id)
    return names


def _prompts(built: Built, case: Case, seed: int) -> list[list[int]]:
    source = random.Random(seed)
    vocabulary = range(3, built.info.vocab_size)
    return [source.choices(vocabulary, k=case.prompt_tokens) for _ in range(case.sequences)]


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--model", default="llama-1b")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--beside", type=int, default=64, help="sequences; 0 leaves it out")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
