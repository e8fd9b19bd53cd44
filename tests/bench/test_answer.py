"""What becomes of one request, for every way in which servers answer."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from penstock.bench.connection import ConnectionPool, Origin
from penstock.bench.record import RequestRecord
from tests.bench.scripted import (
    DROP,
    END,
    STREAM_HEAD,
    ScriptedServer,
    Step,
    delta,
    event,
    plain,
    token,
    usage,
)


def ask(url: str, *, requests: int = 1, timeout_s: float = 30) -> list[RequestRecord]:
    async def run() -> list[RequestRecord]:
        pool = ConnectionPool(origin=Origin.parse(url), headers={}, timeout_s=timeout_s)
        records = [await pool.post("/completions", b"{}") for _ in range(requests)]
        pool.close()
        return records

    return asyncio.run(run())


def answer(server: ScriptedServer, *steps: Step, timeout_s: float = 30) -> RequestRecord:
    server.answer_with(*steps)
    return ask(server.url, timeout_s=timeout_s)[0]


def test_times_are_those_of_the_server(server: ScriptedServer) -> None:
    record = answer(
        server,
        *(STREAM_HEAD, 0.03, token(), 0.02, token(), token(), 0.02, token("", "stop")),
        *(usage(5, 3), event(b"[DONE]"), END),
    )
    _, first_s, second_s, third_s, finish_s, *_ = server.writes_s[0]
    assert record.error is None
    assert record.finish_reason == "stop"
    assert (record.prompt_tokens, record.completion_tokens) == (5, 3)
    assert len(record.chunk_times_s) == 3, "the last chunk has no text"
    # One clock in one process: nothing arrives before it was written.
    for arrived_s, written_s in zip(
        record.chunk_times_s, (first_s, second_s, third_s), strict=True
    ):
        assert 0 <= arrived_s - written_s < 1
    assert record.ended_s >= finish_s
    assert record.ttft_s is not None
    assert record.ttft_s >= 0.03


def test_chat_deltas(server: ScriptedServer) -> None:
    record = answer(
        server,
        *(STREAM_HEAD, delta("", role="assistant"), delta(None, reasoning_content="hm")),
        *(delta("hi"), delta(None, "stop"), event(b"[DONE]"), END),
    )
    assert record.error is None
    assert len(record.chunk_times_s) == 2
    assert record.completion_tokens is None
    assert record.output_tokens == 2


def test_usage_beside_the_finish_reason_and_no_done(server: ScriptedServer) -> None:
    """As `transformers serve` ends its streams."""
    last = {
        "choices": [{"text": "", "index": 0, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 9},
    }
    record = answer(server, STREAM_HEAD, token(), event(last), END)
    assert record.error is None
    assert record.output_tokens == 9


def test_several_events_in_one_piece_share_its_time(server: ScriptedServer) -> None:
    record = answer(server, STREAM_HEAD + token() + token() + token("", "stop") + END)
    assert record.error is None
    assert record.itl_s == [0.0]


FAILURES: dict[str, tuple[Sequence[Step], str]] = {
    "429": ([plain(429, {"error": {"message": "queue is full"}})], "HTTP 429: queue is full"),
    "500 text": ([plain(500, b"Internal Server Error")], "HTTP 500: Internal Server Error"),
    "422 detail": ([plain(422, {"detail": "no such field"})], "HTTP 422: no such field"),
    "503 string": ([plain(503, {"error": "loading"})], "HTTP 503: loading"),
    "404 empty": ([plain(404, b"")], "HTTP 404: (no body)"),
    "400 list": ([plain(400, ["odd"])], "HTTP 400: ['odd']"),
    "error event": (
        [STREAM_HEAD, token(), event({"error": {"message": "engine died"}}), END],
        "error event: engine died",
    ),
    "no finish_reason": (
        [STREAM_HEAD, token(), event(b"[DONE]"), END],
        "the stream ended without a finish_reason",
    ),
    "dropped at once": ([DROP], "the server closed the connection"),
    "dropped in the stream": (
        [STREAM_HEAD, token(), 0.01, DROP],
        "the server closed the connection",
    ),
    "dropped before the end": (
        [STREAM_HEAD, token("", "stop"), 0.01, DROP],
        "the server closed the connection",
    ),
    "not json": ([STREAM_HEAD, event(b"{oops"), END], "an event is not JSON: b'{oops'"),
    "not an object": ([STREAM_HEAD, event(b"[1]"), END], "an event is not a chunk: b'[1]'"),
    "not http": ([b"hello there, this is\r\n\r\n"], "not an HTTP/1.1 response"),
}


@pytest.mark.parametrize(("steps", "reason"), FAILURES.values(), ids=FAILURES.keys())
def test_failures_have_reasons(server: ScriptedServer, steps: Sequence[Step], reason: str) -> None:
    record = answer(server, *steps)
    assert record.error is not None
    assert record.error.startswith(reason)


def test_silent_server_times_out(server: ScriptedServer) -> None:
    record = answer(server, STREAM_HEAD, token(), 60.0, timeout_s=0.2)
    assert record.error == "no complete answer after 0.2 s"


def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        record = ask(f"http://127.0.0.1:{unused.getsockname()[1]}")[0]
    assert record.error is not None
    assert record.error.startswith("cannot connect")


OK = (STREAM_HEAD, token("a", "stop"), END)


def test_connections_are_kept(server: ScriptedServer) -> None:
    server.answer_with(*OK)
    assert all(record.error is None for record in ask(server.url, requests=5))
    assert server.connections == 1


def test_connection_that_went_stale_is_not_a_failure(server: ScriptedServer) -> None:
    """Every second answer closes its connection a moment after it was given back."""

    def script(body: dict[str, Any]) -> Sequence[Step]:
        return OK if len(server.bodies) % 2 else (*OK, DROP)

    server.script = script
    records = ask(server.url, requests=6)
    assert [record.error for record in records] == [None] * 6


def test_failed_connection_is_not_used_again(server: ScriptedServer) -> None:
    def script(body: dict[str, Any]) -> Sequence[Step]:
        return OK if len(server.bodies) == 2 else (STREAM_HEAD, token(), DROP)

    server.script = script
    first, second = ask(server.url, requests=2)
    assert first.error is not None
    assert second.error is None


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("https://api.example.com/openai/v1/", "https://api.example.com:443/openai/v1"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
    ],
)
def test_base_urls(url: str, normal: str) -> None:
    assert Origin.parse(url).url == normal


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "", "http://"])
def test_bad_base_urls(url: str) -> None:
    with pytest.raises(ValueError, match="is not an http"):
        Origin.parse(url)
