"""`make soak`: callers who leave, too many callers, a killed engine, and prefixes of other keys.

The exit status is 0 only if every part found everything as it must be.
"""

import argparse
import asyncio
import sys
from pathlib import Path

# At the end: an installed package must win over a folder of that name.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.provenance import Provenance
from benchmarks.results import merge
from benchmarks.server_process import ServerError, exit_on_terminate, penstock_server
from loadtest.soak import cancels, crash, overload, tenants
from loadtest.soak.verdict import Verdict

SHARES = {"cancels": 0.6, "overload": 0.25, "tenants": 0.05}
"""Of the duration; starting four servers and killing an engine take the rest."""


def main() -> int:
    """Run the parts, each on a server of its own."""
    options = _parse()
    exit_on_terminate()
    model = [] if options.model is None else [options.model]
    common = [*model, "--no-access-log"]
    keys = [flag for key in tenants.KEYS for flag in ("--api-key", key)]

    def share(part: str) -> float:
        return options.duration_s * SHARES[part]

    verdicts: list[Verdict] = []
    try:
        with penstock_server(
            [*common, *cancels.ARGUMENTS, "--engine-in", options.engine_in]
        ) as server:
            work = cancels.cancels(server, duration_s=share("cancels"), seed=options.seed)
            verdicts.append(_show(asyncio.run(work)))
        with penstock_server([*common, *overload.ARGUMENTS]) as server:
            work = overload.overload(server, duration_s=share("overload"), seed=options.seed)
            verdicts.append(_show(asyncio.run(work)))
        with penstock_server([*common, *crash.ARGUMENTS]) as server:
            verdicts.append(_show(asyncio.run(crash.crash(server))))
        with penstock_server([*common, *keys]) as server:
            work = tenants.tenants(server, duration_s=share("tenants"), seed=options.seed)
            verdicts.append(_show(asyncio.run(work)))
    except ServerError as error:
        print(error)
        return 1
    lines = [
        {"part": verdict.part, "figure": name, "value": value}
        for verdict in verdicts
        for name, value in verdict.figures.items()
    ]
    if options.output is not None and lines:
        merge(options.output, lines, Provenance.now("torch", "transformers"), ("part", "figure"))
    failed = any(verdict.faults for verdict in verdicts)
    print("soak failed" if failed else "soak passed")
    return 1 if failed else 0


def _show(verdict: Verdict) -> Verdict:
    print("\n".join(verdict.lines()), flush=True)
    return verdict


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration-s", type=float, default=120, help="in all (default 120)")
    parser.add_argument("--seed", type=int, default=0, help="of requests and moments (default 0)")
    parser.add_argument("--model", help="folder of a model (default: the embedded one)")
    parser.add_argument(
        "--engine-in", choices=("thread", "process"), default="thread", help="of the cancels"
    )
    parser.add_argument("--output", type=Path, help="CSV for the figures (default: none)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
