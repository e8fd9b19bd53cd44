"""Stands between a client and the server, passes bytes on as they come, and keeps what it saw."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx

TIMEOUT_S = 60.0
ENDS_AT_THE_RELAY = {"connection", "host", "keep-alive", "transfer-encoding"}


@dataclass
class Exchange:
    """A request and its answer; `answer` is text, since a stream's is events."""

    path: str
    body: dict[str, Any]
    status: int = 0
    answer: str = ""

    def __str__(self) -> str:
        return f"POST {self.path} {json.dumps(self.body)}\n-> {self.status} {self.answer}"

    @property
    def roles(self) -> list[str]:
        return [message["role"] for message in self.body["messages"]]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The events of a stream, without the last one, which is no JSON."""
        events = [line.removeprefix("data: ") for line in self.answer.splitlines() if line]
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]

    @property
    def deltas(self) -> list[dict[str, Any]]:
        """What each event of a stream adds to the first choice."""
        return [chunk["choices"][0]["delta"] for chunk in self.chunks if chunk["choices"]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients who leave: they keep connections that they need no more."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Relay:
    """`url`: what clients are to be told. `exchanges`: those since they were last cleared."""

    def __init__(self, target: str) -> None:
        self.exchanges: list[Exchange] = []
        self._http = httpx.Client(base_url=target, timeout=TIMEOUT_S, trust_env=False, verify=False)
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator["Relay"]:
        thread = Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
            self._http.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                exchange = Exchange(self.path, json.loads(raw))
                relay.exchanges.append(exchange)
                headers = {
                    name: value
                    for name, value in self.headers.items()
                    if name.lower() not in ENDS_AT_THE_RELAY
                }
                headers["Accept-Encoding"] = "identity"
                with relay._http.stream("POST", self.path, content=raw, headers=headers) as answer:
                    exchange.status = answer.status_code
                    self._head(answer)
                    seen = b""
                    for part in answer.iter_raw():
                        seen += part
                        exchange.answer = seen.decode(errors="replace")
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                    self.wfile.write(b"0\r\n\r\n")

            def _head(self, answer: httpx.Response) -> None:
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name not in {*ENDS_AT_THE_RELAY, "content-length", "date", "server"}:
                        self.send_header(name, value)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Nothing: a failing test shows the exchanges."""

        return Handler
