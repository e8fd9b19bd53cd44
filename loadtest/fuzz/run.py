"""`make fuzz`, over HTTP: a server of its own under requests that are nearly right."""

import argparse
import asyncio
import sys
from pathlib import Path

# At the end: an installed package must win over a folder of that name.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.server_process import ServerError, exit_on_terminate, penstock_server
from loadtest.fuzz.judge import fuzz_http

ARGUMENTS = ("--no-access-log", "--max-model-len", "512", "--search-seconds", "5")


def main() -> int:
    """The exit status is 0 only if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the requests (default 0)")
    parser.add_argument("--first", type=int, default=0, help="start behind this request")
    options = parser.parse_args()
    exit_on_terminate()
    try:
        with penstock_server(ARGUMENTS) as server:
            work = fuzz_http(
                server.url, duration_s=options.seconds, seed=options.seed, first=options.first
            )
            verdict = asyncio.run(work)
            if verdict.faults:
                print(f"the server's log ends with:\n{server.log_tail()}")
            # Last, so that the end of a long log says what was wrong.
            print("\n".join(verdict.lines()))
    except ServerError as error:
        print(error)
        return 1
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())
