"""The soak's own eyes: what it must notice, it notices.

The server is scripted, so that it does what a right one never does: leaves Retry-After out, shares
a prefix between keys, cuts an answer, holds pages for ever.
"""

import asyncio
import os
from typing import Any

import pytest

from benchmarks.server_process import ServerProcess
from loadtest.soak import cancels, overload, tenants
from loadtest.soak.client import Leave, exchange
from loadtest.soak.verdict import Verdict
from tests.bench.scripted import DROP, END, STREAM_HEAD, ScriptedServer, event, plain, token
from tests.loadtest.answers import METRICS


def completion(cached_tokens: int = 0, tokens: int = 1) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "text": " a", "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": tokens,
            "total_tokens": 3 + tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        },
    }


def process_of(server: ScriptedServer) -> ServerProcess:
    """What the parts know of a server: its address."""
    return ServerProcess([], url=server.url.removesuffix("/v1"))


def test_an_answer_is_read_whole_or_until_its_reader_leaves() -> None:
    with ScriptedServer() as server:
        server.answer_with(STREAM_HEAD, token(), token(), event(b"[DONE]"), END)
        url = server.url.removesuffix("/v1")
        whole = asyncio.run(exchange(url, "/v1/completions", {}))
        assert (whole.status, whole.done, whole.text, whole.error) == (200, True, " a a", None)
        left = asyncio.run(exchange(url, "/v1/completions", {}, leave=Leave(events=1)))
        assert left.events
        assert not left.complete
        server.answer_with(STREAM_HEAD, token(), event({"error": {"message": "dead"}}), DROP)
        broken = asyncio.run(exchange(url, "/v1/completions", {}))
        assert (broken.done, broken.error) == (False, {"message": "dead"})


def test_part_of_a_request_is_no_request() -> None:
    with ScriptedServer() as server:
        url = server.url.removesuffix("/v1")
        answer = asyncio.run(exchange(url, "/v1/completions", {"a": 1}, leave=Leave(sent=0.9)))
        assert answer.status == 0
        server.answer_with(plain(200, completion()))
        assert asyncio.run(exchange(url, "/v1/completions", {"b": 1})).status == 200
        assert server.bodies == [{"b": 1}]


def test_a_shared_prefix_is_seen_by_count_and_by_clock() -> None:
    with ScriptedServer() as server:
        asked: list[str] = []

        def shares(body: dict[str, Any]) -> list[Any]:
            known = body["prompt"] in asked
            asked.append(body["prompt"])
            return [0.001 if known else 0.05, plain(200, completion(cached_tokens=96 * known))]

        server.script = shares
        verdict = asyncio.run(tenants.tenants(process_of(server), duration_s=0, seed=0))
        assert any("96 cached tokens, another's" in fault for fault in verdict.faults)
        assert any("another key's prefix takes" in fault for fault in verdict.faults)


@pytest.mark.parametrize(
    ("headers", "fault"),
    [(b"retry-after: 1\r\n", None), (b"", "Retry-After was ''")],
    ids=["told when", "not told when"],
)
def test_a_refusal_must_say_when_to_come_again(headers: bytes, fault: str | None) -> None:
    refusal = (
        b"HTTP/1.1 429 Whatever\r\ncontent-length: 12\r\n" + headers + b"\r\n" + b'{"error": 1}'
    )
    with ScriptedServer() as server:
        server.metrics = METRICS

        def once_refused(body: dict[str, Any]) -> list[Any]:
            full = len(server.bodies) == 1
            return [refusal if full else plain(200, completion(tokens=body["max_tokens"]))]

        server.script = once_refused
        verdict = asyncio.run(overload.overload(process_of(server), duration_s=0, seed=0))
        assert list(verdict.faults) == ([] if fault is None else [fault])
        assert verdict.figures["answered"] == overload.CALLERS


def test_what_is_held_when_all_have_gone_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancels, "IDLE_S", 0.0)
    monkeypatch.setattr(ServerProcess, "pid", os.getpid())
    with ScriptedServer() as server:
        server.metrics = METRICS.replace(b"in_use 0.0", b"in_use 7.0")
        server.answer_with(plain(200, completion()))
        verdict = asyncio.run(cancels.cancels(process_of(server), duration_s=1.0, seed=0))
        assert any("kv_cache_pages_in_use is 7" in fault for fault in verdict.faults)
        assert not any("another text" in fault for fault in verdict.faults)


def test_kinds_of_faults_are_counted_and_cut() -> None:
    verdict = Verdict(part="x", figures={"callers": 2})
    for number in range(15):
        verdict.blame(f"fault {number}")
        verdict.blame(f"fault {number}")
    lines = verdict.lines()
    assert lines[:2] == ["x: callers 2", "x: FAULT, 2 times: fault 0"]
    assert lines[-1] == "x: and 5 further kinds of faults"
