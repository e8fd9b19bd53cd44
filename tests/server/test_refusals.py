"""Refusals that happen before a route, or instead of one.

The kind: a client is configured wrongly, and what it sees, and what its operator sees, does not say
where it knocked. Every refusal is one line of the log with method, path and status, and one count
under a label of a closed set, whoever refuses: the connection, the middleware, the router or the
body's reader.
"""

import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.errors import EngineDeadError, OverloadedError, UnavailableError
from tests.server.scripted import Script, ScriptedServer, scripted, text_deltas, until

KEY = {"Authorization": "Bearer k"}


@pytest.fixture(scope="module")
def door() -> Iterator[ScriptedServer]:
    with scripted(
        Script(deltas=text_deltas("x")),
        api_key=["k"],
        max_body_bytes=1024,
        cors_origin=["http://a"],
    ) as server:
        yield server


def count(server: ScriptedServer, route: str, status: int) -> float:
    labels = {"route": route, "status": str(status)}
    return server.registry.get_sample_value("penstock_http_requests_total", labels) or 0.0


def logged(caplog: pytest.LogCaptureFixture, number: int) -> list[str]:
    """So many lines of the access log: each is written, and counted, after its answer has left."""

    def lines() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.name == "penstock.access"]

    until(lambda: len(lines()) >= number)
    assert len(lines()) == number
    return lines()


REFUSED: list[tuple[int, str, str, dict[str, Any], str]] = [
    (401, "GET", "/v1/models", {}, "other"),
    (401, "POST", "/v1/completions", {"json": {"prompt": "x"}}, "other"),
    (401, "GET", "/v1/v1/models", {"headers": {"Authorization": "Bearer wrong"}}, "other"),
    (403, "GET", "/v1/models", {"headers": {**KEY, "Origin": "http://b"}}, "other"),
    (404, "GET", "/nope", {"headers": KEY}, "other"),
    (404, "PATCH", "/v1/chat", {"headers": KEY}, "other"),
    (405, "GET", "/v1/completions", {"headers": KEY}, "/v1/completions"),
    (405, "DELETE", "/v1/models", {"headers": KEY}, "/v1/models"),
    (
        413,
        "POST",
        "/v1/completions",
        {"headers": KEY, "json": {"prompt": "x" * 2000}},
        "/v1/completions",
    ),
    (415, "POST", "/tokenize", {"headers": KEY, "content": b"{}"}, "/tokenize"),
    (421, "GET", "/v1/models", {"headers": {**KEY, "Host": "evil.example"}}, "other"),
    (431, "GET", "/v1/models", {"headers": {**KEY, "A": "x" * 40_000}}, "other"),
]


@pytest.mark.parametrize(
    ("status", "method", "path", "options", "route"),
    REFUSED,
    ids=[f"{status} {method} {path}" for status, method, path, *_ in REFUSED],
)
def test_log_and_metrics_tell(
    door: ScriptedServer,
    caplog: pytest.LogCaptureFixture,
    status: int,
    method: str,
    path: str,
    options: dict[str, Any],
    route: str,
) -> None:
    before = count(door, route, status)
    with caplog.at_level(logging.INFO, "penstock.access"), door.client() as client:
        answer = client.request(method, path, **options)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        (line,) = logged(caplog, 1)
    assert count(door, route, status) == before + 1
    assert line.startswith(f"{method} {path} {status} ")
    if status in {401, 404, 405}:
        assert f"{method} {path}" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/v1/models", "/v1/models"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/models", "/v1/models"),
        ("//v1//chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/health", "/health"),
        ("/v1/tokenize", "/tokenize"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_wrong_base_urls_are_told_the_right_one(
    door: ScriptedServer, method: str, asked: str, meant: str
) -> None:
    with door.client() as client:
        answer = client.request(method, f"{door.url}{asked}", headers=KEY)
    assert answer.status_code == 404
    message = answer.json()["error"]["message"]
    assert f"{method} {asked};" in message
    assert f" {meant} is one" in message


@pytest.mark.parametrize("asked", ["/nope", "/v1", "/v1/v1", "/v2/models", "/v1/chat", "//"])
def test_other_paths_get_no_hint(door: ScriptedServer, asked: str) -> None:
    with door.client() as client:
        answer = client.get(f"{door.url}{asked}", headers=KEY)
    assert answer.status_code == 404
    assert "see /openapi.json" in answer.json()["error"]["message"]


def exchange(server: ScriptedServer, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    return answer


@pytest.mark.parametrize(
    ("request_", "status", "line"),
    [
        (b"GET /no-version\r\n\r\n", 400, "GET /no-version 400"),
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 400, "GET /v1/models HTTP/1.1 400"),
        (b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "GET /a b HTTP/1.1 400"),
        (b"\x16\x03\x01\x02\r\n\r\n", 400, "\\x16\\x03\\x01\\x02 400"),
        (b"GET /\x1b[31m\n HTTP/1.1\r\n\r\n", 400, "GET /\\x1b[31m\\n HTTP/1.1 400"),
        (b"GET /big HTTP/1.1\r\nA: " + b"x" * 90_000, 431, "GET /big HTTP/1.1 431"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_log_and_metrics_tell_what_was_no_http(
    door: ScriptedServer,
    caplog: pytest.LogCaptureFixture,
    request_: bytes,
    status: int,
    line: str,
) -> None:
    before = count(door, "other", status)
    with caplog.at_level(logging.INFO, "penstock.access"):
        assert exchange(door, request_).startswith(b"HTTP/1.1 %d " % status)
        (found,) = logged(caplog, 1)
    assert count(door, "other", status) == before + 1
    assert found.startswith(line + " refused: ")


def test_what_strangers_send_is_escaped_and_cut(
    door: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    path = "/%1b%5b31m" + "x" * 5000
    with caplog.at_level(logging.INFO, "penstock.access"), door.client() as client:
        for headers in ({}, KEY):
            message = client.get(path, headers=headers).json()["error"]["message"]
            assert "/%1b%5b31m" in message
            assert len(message) < 400
        exchange(door, b"GET /" + b"y" * 40_000)
        exchange(door, b"G" * 5000 + b" / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        lines = logged(caplog, 4)
    for line in lines:
        assert line.isprintable()
        assert len(line) < 500


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (OverloadedError("the queue is full; try again in 7 s", retry_after_s=7), 429, "7"),
        (UnavailableError("try again in a moment"), 503, "1"),
        (EngineDeadError("the engine has failed"), 503, None),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_who_is_told_to_come_back_is_told_when(
    error: Any, status: int, retry_after: str | None, stream: bool
) -> None:
    """A dead engine does not come back by itself."""
    with scripted(Script(refuse=error)) as server, server.client() as client:
        answer = client.post("/v1/completions", json={"prompt": "x", "stream": stream})
        assert answer.status_code == status
        assert answer.headers.get("retry-after") == retry_after


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/scripted"),
        ("GET", "/v1/decoding"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
    ],
)
def test_dead_engine_shows_on_every_route_of_it(method: str, path: str) -> None:
    """What looks alive is sent more requests: also what could still be answered is refused."""
    with scripted() as server, server.client() as client:
        server.engine.unhealthy = EngineDeadError("the engine has failed: KeyError")
        answer = client.request(method, path, json={} if method == "POST" else None)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_dead"
        for other in ("/version", "/metrics", "/openapi.json"):
            assert client.get(other).status_code == 200


def test_keys_and_paths_are_checked_while_the_model_loads(
    door: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door.app.state.services.lifecycle, "phase", "loading")
    with door.client() as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/nope", headers=KEY).status_code == 404
        assert client.get("/v1/completions", headers=KEY).status_code == 405
        answer = client.post("/v1/completions", headers=KEY, json={"prompt": 5})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
