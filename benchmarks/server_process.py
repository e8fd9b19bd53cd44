"""A server as a child process: started, waited for, and stopped by its own process id."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import IO

import httpx

LOG_TAIL_CHARS = 4000


class ServerError(Exception):
    """The server did not start, or does not answer."""


class ServerProcess:
    """Runs `command` inside a `with` block; on entry `url` answers `health_path` with 200.

    The child's output goes to a temporary file, whose end is shown if it does not come up.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        url: str,
        environment: Mapping[str, str] | None = None,
        health_path: str = "/health",
        start_s: float = 120.0,
        stop_s: float = 20.0,
    ) -> None:
        self.url = url
        self._command = list(command)
        self._environment = dict(os.environ) | dict(environment or {})
        self._health_url = url + health_path
        self._start_s = start_s
        self._stop_s = stop_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> "ServerProcess":
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=self._environment,
        )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the running child."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> int | None:
        """Ask it to stop, insist after `stop_s`; its exit status, negative for a signal."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        process.terminate()
        try:
            status = process.wait(self._stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if self._log is not None:
            self._log.close()
        return status

    def log_tail(self) -> str:
        """The end of what the child printed."""
        if self._log is None or self._log.closed:
            return ""
        # The child shares the file position; moving it back would let the child overwrite itself.
        size = os.fstat(self._log.fileno()).st_size
        start = max(0, size - LOG_TAIL_CHARS)
        return os.pread(self._log.fileno(), LOG_TAIL_CHARS, start).decode("utf-8", "replace")

    def _wait(self) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + self._start_s
        with httpx.Client(trust_env=False, timeout=5) as client:
            while time.monotonic() < deadline_s:
                status = self._process.poll()
                if status is not None:
                    raise ServerError(f"the server exited with {status}:\n{self.log_tail()}")
                try:
                    if client.get(self._health_url).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                time.sleep(0.1)
        raise ServerError(f"no answer from the server in {self._start_s:g} s:\n{self.log_tail()}")


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def penstock_server(
    arguments: Sequence[str] = (), *, environment: Mapping[str, str] | None = None
) -> ServerProcess:
    """`penstock serve` of this environment on a free loopback port."""
    port = free_port()
    command = [sys.executable, "-c", "from penstock.server.cli import main; main()", "serve"]
    command += [*arguments, "--host", "127.0.0.1", "--port", str(port)]
    return ServerProcess(command, url=f"http://127.0.0.1:{port}", environment=environment)


def exit_on_terminate() -> None:
    """Turn SIGTERM into SystemExit, so that `with` blocks end and stop their servers."""

    def stop(signum: int, frame: FrameType | None) -> None:
        sys.exit(128 + signum)

    signal.signal(signal.SIGTERM, stop)
