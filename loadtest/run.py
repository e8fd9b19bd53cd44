"""`make load`: start a server, drive it with Locust, judge it, look for leaks.

The exit status is 0 only if every answer kept the contract, every objective of slo.yaml was met,
and afterwards nothing runs, waits or holds pages of the KV cache.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import orjson

# At the end: an installed package must win over a folder of that name.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import Provenance
from benchmarks.results import write
from benchmarks.server_process import ServerError, exit_on_terminate, penstock_server
from loadtest.leaks import wait_until_idle

HERE = Path(__file__).resolve().parent
GRACE_S = 90.0
IDLE_S = 15.0


def main() -> int:
    """Run with a server of its own, or against `--url`."""
    options = _parse()
    exit_on_terminate()
    if options.url is not None:
        return drive(options.url.rstrip("/"), options)
    arguments = [] if options.model is None else [options.model]
    try:
        with penstock_server([*arguments, "--no-access-log"]) as server:
            status = drive(server.url, options)
            if status:
                print(f"the server's log ends with:\n{server.log_tail()}")
            return status
    except ServerError as error:
        print(error)
        return 1


def drive(url: str, options: argparse.Namespace) -> int:
    """One bounded Locust run against `url`; 0 if it and what it left behind are fine."""
    headers: dict[str, str] = {}
    key = os.environ.get("PENSTOCK_API_KEY")
    if key:
        headers["authorization"] = f"Bearer {key}"
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        failed = _locust(url, options, figures)
        if figures.exists() and (entries := orjson.loads(figures.read_bytes())):
            write(options.output, entries, Provenance.now("locust", "torch", "transformers"))
    try:
        leaks = wait_until_idle(url, deadline_s=IDLE_S, headers=headers)
    except httpx.HTTPError as error:
        print(f"load test failed: no metrics afterwards: {error!r}")
        return 1
    for name, value in leaks.items():
        print(f"leak: {name} is {value:g} after {IDLE_S:g} s without requests")
    print("load test failed" if failed or leaks else "load test passed")
    return 1 if failed or leaks else 0


def _locust(url: str, options: argparse.Namespace, figures: Path) -> bool:
    """Whether Locust failed, or took too long."""
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless"]
    command += ["--host", url, "--users", str(options.users), "--spawn-rate", str(options.users)]
    command += ["--run-time", f"{options.duration_s}s", "--stop-timeout", "0"]
    command += ["--slo", str(options.slo), "--figures", str(figures), "--only-summary"]
    command += ["--loglevel", "WARNING"]
    try:
        return subprocess.run(command, timeout=options.duration_s + GRACE_S).returncode != 0
    except subprocess.TimeoutExpired:
        print(f"locust did not end {GRACE_S:g} s after its time")
        return True


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=16, help="at the same time (default 16)")
    parser.add_argument("--duration-s", type=int, default=20, help="of the load (default 20)")
    parser.add_argument("--model", help="folder of a model (default: the embedded one)")
    parser.add_argument("--url", help="drive this running server, do not start one")
    parser.add_argument("--slo", type=Path, default=HERE / "slo.yaml", help="objectives")
    parser.add_argument(
        "--output", type=Path, default=HERE / "results" / "load.csv", help="where figures go"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
