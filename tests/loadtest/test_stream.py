import time

import pytest

from loadtest.contract import ContractError
from loadtest.stream import stream_events
from tests.bench.scripted import DROP, END, STREAM_HEAD, ScriptedServer, event, plain


def payloads(server: ScriptedServer, *, timeout_s: float = 30) -> list[bytes]:
    url = f"{server.url}/chat/completions"
    events = stream_events(url, b"{}", headers={"x-test": "1"}, timeout_s=timeout_s)
    return [payload for _, payload in events]


def test_events_arrive_with_their_times(server: ScriptedServer) -> None:
    server.answer_with(STREAM_HEAD, event(b"one"), 0.02, event(b"two"), END)
    begun_s = time.perf_counter()
    url = f"{server.url}/chat/completions"
    arrived = list(stream_events(url, b"{}", headers={}, timeout_s=30))
    assert [payload for _, payload in arrived] == [b"one", b"two"]
    assert begun_s < arrived[0][0] < arrived[1][0]
    assert arrived[1][0] >= server.writes_s[0][-2]


def test_headers_are_sent(server: ScriptedServer) -> None:
    server.answer_with(STREAM_HEAD, END)
    assert payloads(server) == []
    assert "x-test: 1" in server.heads[0]


def test_refusal_is_an_error(server: ScriptedServer) -> None:
    server.answer_with(plain(429, {"error": "full"}))
    with pytest.raises(ContractError, match=r"HTTP 429: .*full"):
        payloads(server)


def test_cut_stream_is_an_error(server: ScriptedServer) -> None:
    server.answer_with(STREAM_HEAD, event(b"one"), 0.01, DROP)
    with pytest.raises((ContractError, ConnectionError)):
        payloads(server)


def test_silence_is_an_error(server: ScriptedServer) -> None:
    server.answer_with(STREAM_HEAD, event(b"one"), 60.0)
    with pytest.raises(TimeoutError):
        payloads(server, timeout_s=0.1)
