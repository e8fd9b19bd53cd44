"""Constrained answers beside free ones of the same length, with and without drafting what is
forced.

    python benchmarks/structured.py [--models nano PATH] [--concurrency 1 4 16]

Every way takes its turn in each round, so that ratios hold on a noisy machine. A free answer gets
as many tokens as the constrained one had.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

# At the end: an installed package must win over a folder of that name.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.models import model_folder
from benchmarks.provenance import Provenance
from benchmarks.results import write
from penstock.bench.report import plain_table
from penstock.decoding.constraint.constraint import GrammarConstraint
from penstock.decoding.sampling_params import SamplingParams
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.requests.input import Input

OUTPUT = Path(__file__).resolve().parent / "results" / "structured.csv"
PROMPT = "Describe a person from the story, with name, age, city, occupation and hobbies.\n"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "full_name": {"type": "string", "maxLength": 24},
        "age_in_years": {"type": "integer", "minimum": 0, "maximum": 120},
        "home_city": {"type": "string", "maxLength": 24},
        "occupation": {"enum": ["teacher", "farmer", "doctor", "unemployed"]},
        "favourite_hobbies": {
            "type": "array",
            "items": {"enum": ["reading", "swimming", "gardening", "music"]},
            "minItems": 1,
            "maxItems": 3,
        },
        "is_a_friend": {"type": "boolean"},
    },
    "additionalProperties": False,
}
SCHEMA["required"] = list(SCHEMA["properties"])
FREE, NO_DRAFTS, DRAFTS = "free", "constrained, nothing drafted", "constrained"
WAYS = (FREE, NO_DRAFTS, DRAFTS)


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    rows: list[dict[str, Any]] = []
    for name in options.models:
        folder = Path(name) if Path(name).is_dir() else model_folder(name)
        config = EngineConfig(model=str(folder), dtype="float32", kv_cache_memory=2**28)
        built = build_engine(config, time.perf_counter)
        for concurrency in options.concurrency:
            rows += measure(built, Path(name).name, concurrency, options.rounds)
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    print("\n".join(plain_table(lines)))
    write(options.output, rows, Provenance.now("torch", "llguidance"))
    return 0


def measure(built: Built, model: str, concurrency: int, rounds: int) -> list[dict[str, Any]]:
    """Medians over the rounds, of which the first is thrown away."""
    seconds: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, list[int]] = defaultdict(list)
    tokens: dict[str, list[int]] = defaultdict(list)
    for number in range(rounds + 1):
        lengths: list[int] = []
        for way in (NO_DRAFTS, DRAFTS, FREE):
            with drafting(way):
                took_s, passes, lengths = decode(built, way, concurrency, number, lengths)
            if number:
                seconds[way].append(took_s)
                steps[way].append(passes)
                tokens[way].append(sum(lengths))
    each_s = {w: statistics.median(map(_ratio, seconds[w], tokens[w])) for w in WAYS}
    return [
        {
            "model": model,
            "streams": concurrency,
            "way": way,
            "tokens": sum(tokens[way]),
            "steps": sum(steps[way]),
            "tokens_per_s": round(1 / each_s[way], 1),
            "speed_over_free": round(each_s[FREE] / each_s[way], 3),
        }
        for way in WAYS
    ]


def _ratio(seconds: float, tokens: int) -> float:
    return seconds / tokens


def drafting(way: str) -> AbstractContextManager[Any]:
    """Forces nothing inside the block, if the way says so."""
    if way != NO_DRAFTS:
        return nullcontext()
    return patch.object(GrammarConstraint, "forced", return_value=[])


def decode(
    built: Built, way: str, concurrency: int, number: int, lengths: list[int]
) -> tuple[float, int, list[int]]:
    """Time from the first token of the last prompt to the end: (seconds, steps, lengths)."""
    engine = built.engine
    for index in range(concurrency):
        params = SamplingParams(
            max_tokens=lengths[index] if way == FREE else 200,
            ignore_eos=way == FREE,
            temperature=1.0,
            seed=number * 100 + index,
            structured_outputs=None if way == FREE else {"json": SCHEMA},  # pyright: ignore[reportArgumentType] - validated
        )
        request = built.input_processor.prepare(
            Input(request_id=str(index), prompt=PROMPT, params=params)
        )
        engine.add(request)
    made = [0] * concurrency
    while min(made) == 0:
        _count(engine.step(), made)
    before, passes, began_s = sum(made), 0, time.perf_counter()
    while engine.has_work:
        _count(engine.step(), made)
        passes += 1
    took_s = time.perf_counter() - began_s
    # The first tokens are not timed.
    return took_s * sum(made) / max(1, sum(made) - before), passes, made


def _count(outputs: list[Any], made: list[int]) -> None:
    for output in outputs:
        made[int(output.request_id)] += len(output.token_ids)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["nano"])
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
