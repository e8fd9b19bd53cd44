"""`make fuzz`: random inputs for as long as one likes; status 1 where any did what none may."""

import argparse
import random
import sys
import time

from tests.fuzz import adapters, folders, gguf
from tests.fuzz.report import Report

KINDS = {"adapters": adapters.run, "folders": folders.run, "gguf": gguf.run}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--kind", choices=sorted(KINDS), action="append", help="default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each kind")
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument("--case", type=int, default=None, help="run this one alone")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if asked.seed is None else asked.seed
    failed = False
    for kind in asked.kind or sorted(KINDS):
        began_s = time.monotonic()
        report = Report(kind=kind, seed=seed, write=sys.stdout.write)
        cases = None if asked.case is None else [asked.case]
        KINDS[kind](report, seconds=asked.seconds, workers=asked.workers, cases=cases)
        report.finish(time.monotonic() - began_s)
        failed |= bool(report.findings)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
