"""`make sweep`: every model type of transformers is equal to `generate`, or refused at start."""

import argparse
import sys
import time
from collections import Counter

from tests.sweep import crew
from tests.sweep.outcome import Kind, Outcome


def main() -> int:
    parser = argparse.ArgumentParser(prog="make sweep", description=__doc__)
    parser.add_argument("--types", nargs="+", default=None, help="these alone")
    parser.add_argument("--part", default="1/1", help="3/8: the third of eight parts")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin none after them")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    from tests.sweep.checks import run
    from tests.sweep.tiny_models import model_types

    number, _, of = asked.part.partition("/")
    types = asked.types or model_types()[int(number) - 1 :: int(of)]
    began_s = time.monotonic()

    def tell(outcome: Outcome) -> None:
        sys.stdout.write(outcome.line() + "\n")
        sys.stdout.flush()

    outcomes = crew.sweep(types, run, workers=asked.workers, seconds=asked.seconds, tell=tell)
    counts = Counter(outcome.kind for outcome in outcomes)
    told = ", ".join(f"{counts[kind]} {kind}" for kind in Kind)
    left = len(types) - len(outcomes)
    sys.stdout.write(
        f"sweep, part {asked.part}: {told}, {left} not begun, in {time.monotonic() - began_s:.0f} s\n"
    )
    return 1 if counts[Kind.FAULT] else 0


if __name__ == "__main__":
    sys.exit(main())
