"""What a real engine does not do on command: fail half-way, be full, be slow."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from penstock.engine.state.request import ChoiceDelta, TokenLogprobs
from penstock.errors import EngineDeadError, OverloadedError, PenstockError, UnavailableError
from tests.server.scripted import MODEL, Script, scripted, text_deltas, until

COMPLETION: dict[str, Any] = {"prompt": "x", "stream": True}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "stream": True}
PATHS = {"/v1/completions": COMPLETION, "/v1/chat/completions": CHAT}
BOTH = pytest.mark.parametrize(("path", "body"), PATHS.items(), ids=["completion", "chat"])


def events(lines: Iterator[str]) -> Iterator[str]:
    """Data of server-sent events, and comments as they are."""
    for line in lines:
        if line:
            yield line.removeprefix("data: ")


@BOTH
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineDeadError("the engine has failed"), "engine_dead"),
        (UnavailableError("the server is shutting down"), "unavailable"),
        (ZeroDivisionError("secret detail at /some/path"), "internal_error"),
    ],
    ids=["dead", "shutdown", "bug"],
)
def test_error_after_the_first_token_is_an_event(
    path: str, body: dict[str, Any], error: Exception, code: str
) -> None:
    script = Script(deltas=text_deltas("Good", "bye", "")[:2], error=error)
    with scripted(script) as server, server.client() as client:
        answer = client.post(path, json=body)
        assert answer.status_code == 200
        *chunks, last = events(iter(answer.text.splitlines()))
        assert "[DONE]" not in answer.text
        assert "secret" not in answer.text
        content = json.loads(last)
        assert set(content) == {"error"}
        assert content["error"]["code"] == code
        assert content["error"]["type"] == "server_error"
        assert any("bye" in chunk for chunk in chunks)
        with server.sdk() as sdk, pytest.raises(openai.APIError):
            list(sdk.completions.create(model=MODEL, prompt="x", stream=True))
        until(lambda: all(g.aborted.is_set() for g in server.engine.generations))


@BOTH
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_error_before_the_first_token_is_a_status(
    path: str, body: dict[str, Any], stream: bool
) -> None:
    script = Script(error=EngineDeadError("the engine has failed"))
    with scripted(script) as server, server.client() as client:
        answer = client.post(path, json={**body, "stream": stream})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_dead"


@BOTH
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_full_queue_is_429_before_the_first_byte(
    path: str, body: dict[str, Any], stream: bool
) -> None:
    refuse: PenstockError = OverloadedError("the queue is full", retry_after_s=7)
    with scripted(Script(refuse=refuse)) as server, server.client() as client:
        answer = client.post(path, json={**body, "stream": stream})
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "7"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        with server.sdk() as sdk, pytest.raises(openai.RateLimitError):
            sdk.completions.create(model=MODEL, prompt="x", stream=stream)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_batch_is_taken_whole_or_not_at_all(stream: bool) -> None:
    script = Script(refuse=OverloadedError("full", retry_after_s=1), accept=2, forever=True)
    with scripted(script) as server, server.client() as client:
        answer = client.post("/v1/completions", json={"prompt": ["a", "b", "c"], "stream": stream})
        assert answer.status_code == 429
        assert len(server.engine.generations) == 2
        assert all(generation.aborted.is_set() for generation in server.engine.generations)


@BOTH
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_caller_who_leaves_is_noticed_while_nothing_happens(
    path: str, body: dict[str, Any], stream: bool
) -> None:
    content = json.dumps({**body, "stream": stream}).encode()
    with scripted(Script(forever=True)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(
                b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (path.encode(), len(content), content)
            )
            until(lambda: server.engine.generations)
        (generation,) = server.engine.generations
        until(generation.aborted.is_set)
        left = {"route": path, "status": "499"}
        until(lambda: server.registry.get_sample_value("penstock_http_requests_total", left) == 1)


@BOTH
def test_slow_answers_are_kept_alive_by_comments(path: str, body: dict[str, Any]) -> None:
    with scripted(Script(forever=True), heartbeat_s=0.02) as server, server.client() as client:
        with client.stream("POST", path, json=body) as answer:
            assert answer.status_code == 200
            lines = events(answer.iter_lines())
            assert [next(lines) for _ in range(3)] == [": still working"] * 3
            (generation,) = server.engine.generations
        until(generation.aborted.is_set)


def test_deltas_become_the_contracts_chunks() -> None:
    script = Script(deltas=text_deltas("Hé", "", "llo", end="length"))
    with scripted(script) as server, server.client() as client:
        lines = events(iter(client.post("/v1/chat/completions", json=CHAT).text.splitlines()))
        *chunks, done = lines
        assert done == "[DONE]"
        parsed = [json.loads(chunk) for chunk in chunks]
        assert [chunk["choices"][0]["delta"] for chunk in parsed] == [
            {"role": "assistant", "content": ""},
            {"content": "Hé"},
            {"content": "llo"},
            {},
        ]
        assert parsed[-1]["choices"][0]["finish_reason"] == "length"
        assert {chunk["object"] for chunk in parsed} == {"chat.completion.chunk"}
        assert {chunk["created"] for chunk in parsed} == {1_700_000_000}
        assert {chunk["model"] for chunk in parsed} == {MODEL}
        lines = events(iter(client.post("/v1/completions", json=COMPLETION).text.splitlines()))
        *chunks, done = lines
        parsed = [json.loads(chunk) for chunk in chunks]
        assert [chunk["choices"][0]["text"] for chunk in parsed] == ["Hé", "llo"]
        assert parsed[-1]["choices"][0]["finish_reason"] == "length"


def test_logprobs_of_minus_infinity_are_numbers() -> None:
    never = TokenLogprobs(
        token_id=5, logprob=float("-inf"), rank=300, top=((7, -0.1), (5, float("-inf")))
    )
    delta = ChoiceDelta(
        index=0,
        text="&",
        token_ids=(5,),
        logprobs=(never,),
        places=(0,),
        finish_reason="length",
    )
    with scripted(Script(deltas=[delta])) as server, server.client() as client:
        answer = client.post("/v1/completions", json={"prompt": "x", "logprobs": 2})
        assert answer.json()["choices"][0]["logprobs"]["token_logprobs"] == [-9999.0]
        messages = [{"role": "user", "content": "x"}]
        answer = client.post(
            "/v1/chat/completions",
            json={"messages": messages, "logprobs": True, "top_logprobs": 2},
        )
        content = answer.json()["choices"][0]["logprobs"]["content"]
        assert content[0]["logprob"] == -9999.0


def test_unhealthy_engine_shows_in_health() -> None:
    with scripted() as server, server.client() as client:
        server.engine.unhealthy = EngineDeadError("the engine has been in one step for 60 s")
        answer = client.get("/health")
        assert answer.status_code == 503
        assert "60 s" in answer.json()["error"]["message"]


def test_unexpected_error_is_a_500_that_tells_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with scripted() as server, server.client() as client:

        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("secret detail at /some/path")

        monkeypatch.setattr(type(server.engine.input_processor), "prepare", broken)
        answer = client.post("/v1/completions", json={"prompt": "x"})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert "secret" not in answer.text
        assert answer.headers["x-request-id"]
        assert client.get("/health").status_code == 200
