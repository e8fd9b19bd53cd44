"""Silence on a stream, which proxies cut.

The kind: a promise about time that is kept by a period of its own, so that it comes late by what
the period and the event are apart. The longest silence is what was promised wherever it begins:
with the request, with the head, after a token.

The times are those of an event loop whose clock jumps to the next thing that is due, so that they
are exact; tests/server/test_streaming.py has comments over HTTP.
"""

import asyncio
import itertools
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

import pytest

from penstock.decoding.sampling_params import SamplingParams
from penstock.engine.requests.input import Input
from penstock.engine.state.request import ChoiceDelta
from penstock.server.streaming import EventStream
from tests.server.scripted import Script, ScriptedEngine, ScriptedGeneration

HEARTBEAT_S = 10.0


class JumpingSelector(selectors.SelectSelector):
    """Does not wait, but says how long it would have."""

    def __init__(self, waited: Callable[[float], None]) -> None:
        super().__init__()
        self._waited = waited

    def select(self, timeout: float | None = None) -> Any:
        self._waited(timeout or 0.0)
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop on which nothing takes time but waiting, which takes exactly its time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(JumpingSelector(self._jump))

    def time(self) -> float:
        return self.now_s

    def _jump(self, seconds: float) -> None:
        self.now_s += seconds


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(work)


class Writer:
    def opening(self) -> bytes:
        return b""

    def events(self, prompt: int, delta: ChoiceDelta, answered: Any) -> bytes:
        return delta.text.encode()

    def closing(self, answered: Any) -> bytes:
        return b""


async def sent(tokens_s: list[float], *, since_s: float = 0.0) -> list[tuple[float, bytes]]:
    """When what is sent of an answer whose tokens come at these times; it ends with the last."""
    clock = asyncio.get_running_loop().time

    async def deltas(self: ScriptedGeneration) -> AsyncIterator[ChoiceDelta]:
        for at_s in tokens_s:
            await asyncio.sleep(at_s - clock())
            yield ChoiceDelta(index=0, text="x")

    engine = ScriptedEngine(Script())
    request = engine.input_processor.prepare(
        Input(request_id="r", prompt="x", params=SamplingParams())
    )
    pieces: list[tuple[float, bytes]] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            pieces.append((clock(), message["body"]))

    stream = EventStream(
        cast("Any", engine),
        [request],
        cast("Any", Writer()),
        {},
        heartbeat_s=HEARTBEAT_S,
        since_s=since_s,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedGeneration, "__aiter__", deltas)
        await stream({}, receive, send)
    return pieces


@pytest.mark.parametrize(
    "tokens_s",
    [[95.0], [1.0, 95.0], [6.0, 95.0], [9.5, 95.0], [0.0, 9.0, 17.9, 50.0], [8.0, 16.0, 24.0]],
    ids=str,
)
def test_no_silence_is_longer_than_the_heartbeat(tokens_s: list[float]) -> None:
    """While the request waits, and after a token wherever it falls between two comments."""

    async def check() -> None:
        times = [0.0, *(at_s for at_s, _ in await sent(tokens_s))]
        silences = [later - sooner for sooner, later in itertools.pairwise(times)]
        assert max(silences) < HEARTBEAT_S

    run(check())


def test_comments_come_only_into_silence() -> None:
    async def check() -> None:
        pieces = await sent([8.0, 16.0, 24.0])
        assert [piece for _, piece in pieces] == [b"x", b"x", b"x", b"data: [DONE]\n\n"]

    run(check())


def test_silence_begins_with_the_request() -> None:
    """Before it is queued, it waits for the threads that read it."""

    async def check() -> None:
        await asyncio.sleep(7.0)
        pieces = await sent([60.0], since_s=0.0)
        assert pieces[0] == (pytest.approx(0.9 * HEARTBEAT_S), b": still working\n\n")

    run(check())
