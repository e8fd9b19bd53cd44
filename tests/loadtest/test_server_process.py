"""Children are started, waited for, and stopped by their own process id."""

import os
import sys

import pytest

from benchmarks.server_process import ServerError, ServerProcess, free_port

CHILD = """
import http.server, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("content-length", "0")
        self.end_headers()
if len(sys.argv) > 2:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def child(*arguments: str, code: str = CHILD, start_s: float = 30) -> ServerProcess:
    port = free_port()
    command = [sys.executable, "-c", code, str(port), *arguments]
    return ServerProcess(command, url=f"http://127.0.0.1:{port}", start_s=start_s, stop_s=0.5)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("arguments", [[], ["ignore SIGTERM"]], ids=["polite", "stubborn"])
def test_child_lives_as_long_as_the_block(arguments: list[str]) -> None:
    with child(*arguments) as server:
        pid = server.pid
        assert is_alive(pid)
    assert not is_alive(pid)


def test_child_is_stopped_when_the_block_raises() -> None:
    pids: list[int] = []

    def fail() -> None:
        with child() as server:
            pids.append(server.pid)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not is_alive(pids[0])


def test_child_that_exits_is_reported_with_its_output() -> None:
    code = "raise SystemExit('no such model')"
    with pytest.raises(ServerError, match=r"(?s)exited with 1.*no such model"):
        child(code=code).__enter__()


def test_child_that_never_answers_is_given_up() -> None:
    with pytest.raises(ServerError, match="no answer"):
        child(code="import time; time.sleep(600)", start_s=0.3).__enter__()
