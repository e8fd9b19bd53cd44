"""What a request's rules cost: its steps beside those of the same request without any.

    python benchmarks/rules.py [--models nano] [--rounds 5]

As many choices, rows of drafts, allowed tokens, bad words, biases and logprobs as one request may
ask for. Both requests take turns, round after round, on one engine.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

# At the end: an installed package must win over a folder of that name.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.models import model_folder
from benchmarks.provenance import Provenance
from benchmarks.results import write
from penstock.bench.report import plain_table
from penstock.decoding.sampling_params import SamplingParams
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.requests.input import Input

OUTPUT = Path(__file__).resolve().parent / "results" / "rules.csv"
JACOBI = {"jacobi": {"window": 256, "adaptive": False}}
PLAIN: dict[str, Any] = {"max_tokens": 200, "seed": 1, "ignore_eos": True}


def rules_of(vocabulary: int) -> dict[str, Any]:
    """Every rule, as large as it may be."""
    allowed = [5 + i % (vocabulary - 5) for i in range(16_384)]
    return {
        "allowed_token_ids": allowed,
        "bad_words": [chr(97 + i % 26) * 125 + "ab" * 62 + chr(97 + i // 26) for i in range(256)],
        "logit_bias": {str(token): 0.5 for token in allowed[:1024]},
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
    }


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    lines: list[dict[str, Any]] = []
    for name in options.models:
        config = EngineConfig(model=str(model_folder(name)), dtype="float32", kv_cache_memory=2**28)
        built = build_engine(config, time.perf_counter)
        for n, decoding in ((1, None), (16, None), (62, None), (62, JACOBI)):
            lines.append({"model": name} | measure(built, n, decoding, options.rounds))
            print("\n".join(plain_table([list(lines[-1]), list(map(str, lines[-1].values()))])))
    write(options.output, lines, Provenance.now("torch", "transformers"))
    return 0


def measure(built: Built, n: int, decoding: Any, rounds: int) -> dict[str, Any]:
    """Medians of a step's time over all rounds; the first, a warm-up, is thrown away."""
    took_s: dict[bool, list[float]] = {False: [], True: []}
    first_s: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 1):
        for ruled in (False, True):
            begun_s, steps_s = _steps(built, n, decoding, ruled=ruled, name=f"{number}-{ruled}")
            if number:
                took_s[ruled] += steps_s
                first_s[ruled].append(begun_s)
    plain_s, ruled_s = (statistics.median(took_s[ruled]) for ruled in (False, True))
    return {
        "choices": n,
        "drafter": "none" if decoding is None else "jacobi",
        "plain_ms": round(plain_s * 1e3, 3),
        "ruled_ms": round(ruled_s * 1e3, 3),
        "ratio": round(ruled_s / plain_s, 2),
        "first_step_ms": round(statistics.median(first_s[False]) * 1e3, 3),
        "first_step_ruled_ms": round(statistics.median(first_s[True]) * 1e3, 3),
    }


def _steps(
    built: Built, n: int, decoding: Any, *, ruled: bool, name: str
) -> tuple[float, list[float]]:
    """Seconds of the step that reads the prompt, and of 40 that decode."""
    rules = rules_of(built.input_processor.model.vocab_size) if ruled else {}
    request = built.input_processor.prepare(
        Input(
            request_id=name,
            prompt="Once upon a time",
            params=SamplingParams(**PLAIN, n=n, **rules),
            decoding=decoding,
            logprobs=20,
        )
    )
    built.engine.add(request)
    times_s: list[float] = []
    for _ in range(41):
        start_s = time.perf_counter()
        built.engine.step()
        times_s.append(time.perf_counter() - start_s)
    built.engine.abort(name)
    return times_s[0], times_s[1:]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["nano"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
