"""Failures that are no `Exception`.

The kind: compiled Rust (tokenizers, pydantic, orjson) panics as a `BaseException`, which passes by
every `except Exception`: a thread ends without a word, a task's waiters wait for ever, or uvicorn
answers in plain text. Only cancellation and the process's exit may pass. Each place that runs
foreign code for a request: the threads of the intake, the event loop, the engine's loop, loading.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from penstock.errors import EngineDeadError
from penstock.server.backend import Backend
from tests.server.scripted import Script, ScriptedServer, real_engine, scripted, text_deltas

COMPLETIONS = "/v1/completions"


class Panic(BaseException):
    """As pyo3_runtime.PanicException is."""


def panic(*_: object, **__: object) -> Any:
    raise Panic("called `Option::unwrap()` on a `None` value")


def is_internal_error(body: Any) -> bool:
    return body["error"] == {
        "message": "internal error; the server's log has the details",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_panic_in_an_intake_thread(monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    with scripted() as server, server.client() as client:
        monkeypatch.setattr(type(server.engine.input_processor), "prepare", panic)
        for _ in range(5):  # more than there are threads
            answer = client.post(COMPLETIONS, json={"prompt": "x", "stream": stream})
            assert answer.status_code == 500
            assert is_internal_error(answer.json())
        monkeypatch.setattr(type(server.engine.tokenizer), "decode", panic)
        assert is_internal_error(client.post("/detokenize", json={"tokens": [5]}).json())
        assert client.get("/health").status_code == 200


def test_panic_on_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted() as server, server.client() as client:
        monkeypatch.setattr(type(server.engine), "submit", panic)
        assert is_internal_error(client.post(COMPLETIONS, json={"prompt": "x"}).json())


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"]], ids=["one", "two"])
def test_panic_in_the_middle_of_a_stream(prompts: list[str]) -> None:
    script = Script(deltas=text_deltas("x", end=None), error=Panic())  # type: ignore[arg-type]
    with scripted(script) as server, server.client() as client:
        answer = client.post(COMPLETIONS, json={"prompt": prompts, "stream": True})
        *_, last = [line for line in answer.text.splitlines() if line]
        assert is_internal_error(json.loads(last.removeprefix("data: ")))
        answer = client.post(COMPLETIONS, json={"prompt": prompts})
        assert answer.status_code == 500
        assert is_internal_error(answer.json())


def test_panic_while_loading_ends_the_server(caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedServer(load=panic) as server:
        server.wait()
    assert server.app.state.services.lifecycle.exit_code == 1
    assert "could not be loaded" in caplog.text


@pytest.fixture
def real(tiny_llama: Path) -> Callable[[], Backend]:
    engine = real_engine(tiny_llama, CollectorRegistry())
    return lambda: engine


def test_panic_in_one_answers_text_is_its_own(
    real: Callable[[], Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Detokenising is done on the loop, for all that a step has brought."""
    from penstock.engine.outputs.detokenizer import Detokenizer

    push = Detokenizer.push
    marked: list[Detokenizer] = []

    def panics_for_one(self: Detokenizer, token: int) -> str:
        if not marked:
            marked.append(self)
        return panic() if self is marked[0] else push(self, token)

    monkeypatch.setattr(Detokenizer, "push", panics_for_one)
    fields = {"prompt": ["one", "two", "three"], "max_tokens": 3, "ignore_eos": True}
    with scripted(load=real) as server, server.client() as client:
        answer = client.post(COMPLETIONS, json={**fields, "stream": True})
        *_, last = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert is_internal_error(json.loads(last))
        assert client.post(COMPLETIONS, json=fields).status_code == 200
        assert client.get("/health").status_code == 200


def test_panic_in_the_engines_loop_is_a_dead_engine(
    real: Callable[[], Backend], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from penstock.engine.core.engine import Engine

    with caplog.at_level(logging.ERROR), scripted(load=real) as server, server.client() as client:
        monkeypatch.setattr(Engine, "step", panic)
        answer = client.post(COMPLETIONS, json={"prompt": "x"})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_dead"
        for path in ("/health", "/v1/models", "/v1/decoding"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert "Panic" in answer.json()["error"]["message"]
    assert "the engine has failed" in caplog.text
    assert EngineDeadError.__name__ not in caplog.text
