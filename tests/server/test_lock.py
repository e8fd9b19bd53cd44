"""Work off the event loop must not hold the interpreter's lock, or the loop stands still anyway.

The kind: a call into a library that keeps the lock for as long as its data is long. It can occur
wherever a long text or list crosses into one: tokenising, detokenising, chats, their rendering.
"""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.process import ServeProcess
from tests.tiny import save_tiny

MODEL = "long"
CONTEXT = 2**17
TEXT = "the quick brown fox, " * (500_000 // 21)
QUIET_S = 0.1


@pytest.fixture(scope="module", params=["thread", "process"])
def long_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServeProcess]:
    folder = tmp_path_factory.mktemp("long")
    save_tiny("llama", folder / "model", max_position_embeddings=CONTEXT)
    arguments = [str(folder / "model"), "--served-model-name", MODEL, "--threads", "1"]
    arguments += ["--engine-in", request.param, "--kv-cache-memory", "200000000"]
    with ServeProcess(arguments, folder / "log") as running:
        yield running


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "completions": ("/v1/completions", {"model": MODEL, "prompt": TEXT}),
    "chats": (
        "/v1/chat/completions",
        {"model": MODEL, "messages": [{"role": "user", "content": TEXT + "<eos>"}]},
    ),
    "tokenize": ("/tokenize", {"prompt": TEXT}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_health_and_streams_go_on_beside_long_texts(long_server: ServeProcess, case: str) -> None:
    path, body = CASES[case]
    content = json.dumps(body)
    gaps: dict[str, list[float]] = {"health": [], "stream": []}
    begun, over = threading.Event(), threading.Event()

    def ask() -> None:
        with long_server.client(120) as client:
            client.post(path, content=content, headers={"Content-Type": "application/json"})

    def listen() -> None:
        stream = {"model": MODEL, "prompt": "q", "max_tokens": 5000, "ignore_eos": True}
        with (
            long_server.client(120) as client,
            client.stream("POST", "/v1/completions", json={**stream, "stream": True}) as answer,
        ):
            _gaps(answer, gaps["stream"], begun, over)

    listener = threading.Thread(target=listen)
    listener.start()
    assert begun.wait(60)
    gaps["stream"].clear()
    asking = [threading.Thread(target=ask) for _ in range(5)]
    began = time.monotonic()
    for thread in asking:
        thread.start()
    with long_server.client() as client:
        while any(thread.is_alive() for thread in asking):
            before = time.monotonic()
            assert client.get("/health").status_code == 200
            gaps["health"].append(time.monotonic() - before)
    took_s = time.monotonic() - began
    over.set()
    listener.join()
    # With the lock held, others are served between two such calls at best: one long gap after
    # another. Some gaps are long too where the machine is busy otherwise.
    for of, found in gaps.items():
        stood_still_s = sum(gap for gap in found if gap > QUIET_S)
        assert stood_still_s < took_s / 3, (of, took_s, sorted(found)[-9:])


def _gaps(
    answer: httpx.Response, gaps: list[float], begun: threading.Event, over: threading.Event
) -> None:
    last = time.monotonic()
    for _ in answer.iter_raw():
        now = time.monotonic()
        gaps.append(now - last)
        last = now
        begun.set()
        if over.is_set():
            return
