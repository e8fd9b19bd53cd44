"""`make sweep`: every model type of transformers is equal to `generate`, or refused at start.

A whole sweep without faults writes docs/supported-models.csv and the tables in
docs/supported-models.md. A part must find what they say, or changes them with `--save`.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tests.sweep import crew, table
from tests.sweep.checks import run
from tests.sweep.outcome import Kind, Outcome
from tests.sweep.tiny_models import model_types


def main() -> int:
    parser = argparse.ArgumentParser(prog="make sweep", description=__doc__)
    parser.add_argument("--types", nargs="+", default=None, help="these alone")
    parser.add_argument("--part", type=_part, default=(1, 1), help="3/8: the third of eight parts")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin none after them")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="write the results of a part, too")
    asked = parser.parse_args()
    number, of = asked.part
    types: list[str] = asked.types or model_types()[number - 1 :: of]
    began_s = time.monotonic()
    outcomes = crew.sweep(types, run, workers=asked.workers, seconds=asked.seconds, tell=_tell)
    counts = Counter(outcome.kind for outcome in outcomes)
    told = ", ".join(f"{counts[kind]} {kind}" for kind in Kind)
    left, taken_s = len(types) - len(outcomes), time.monotonic() - began_s
    sys.stdout.write(f"part {number}/{of}: {told}, {left} not begun, in {taken_s:.0f} s\n")
    if counts[Kind.FAULT]:
        return 1
    whole = sorted(outcome.model_type for outcome in outcomes) == model_types()
    if not whole and not asked.save:
        return _compare(outcomes)
    others = {} if whole else table.saved()
    table.save({**others, **{outcome.model_type: outcome for outcome in outcomes}}.values())
    text = table.DOCUMENT.read_text(encoding="utf-8")
    table.DOCUMENT.write_text(table.document(text, table.saved()), encoding="utf-8")
    return 0


def _part(given: str) -> tuple[int, int]:
    number, of = map(int, given.split("/"))
    if not 1 <= number <= of:
        raise argparse.ArgumentTypeError(f"{given}: the first number is from 1 to the second")
    return number, of


def _tell(outcome: Outcome) -> None:
    sys.stdout.write(outcome.line() + "\n")
    sys.stdout.flush()


def _compare(outcomes: Sequence[Outcome]) -> int:
    """Status 1 where the results that are saved say something else."""
    saved = table.saved()
    differ = 0
    for found in outcomes:
        said = saved.get(found.model_type)
        if said is None or said.kind != found.kind:
            of = "nothing" if said is None else said.kind
            sys.stdout.write(f"{found.model_type}: {table.RESULTS.name} says {of}: make sweep\n")
            differ = 1
    return differ


if __name__ == "__main__":
    sys.exit(main())
