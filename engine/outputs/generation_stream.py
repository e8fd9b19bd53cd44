"""A running request as its caller on the event loop sees it: an asynchronous iterator of deltas."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Self

from ...errors import PenstockError
from ..state.request import ChoiceDelta, Request, TokenLogprobs, Trace, Usage
from .generation import Generation


class GenerationStream(AsyncIterator[ChoiceDelta]):
    """The deltas of all choices, in order of arrival; an `Outlet`.

    Iteration raises GenerationError if the request has failed, and EngineDeadError or
    UnavailableError if it cannot be finished.
    """

    def __init__(self, generation: Generation, abort: Callable[[str], None]) -> None:
        self._generation = generation
        self._abort = abort
        self._deltas: deque[ChoiceDelta] = deque()
        self._wake = asyncio.Event()
        self._error: PenstockError | None = None
        self._closed = False

    @property
    def request(self) -> Request:
        """What was submitted."""
        return self._generation.request

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return self._generation.usage

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        """Available from the first delta on, if they were asked for."""
        return self._generation.prompt_logprobs

    @property
    def trace(self) -> Trace | None:
        """The tree of a search; None: this is not a search."""
        return self._generation.trace

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChoiceDelta:
        while not self._deltas:
            if self._error is not None:
                raise self._error
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._deltas.popleft()

    def ready(self) -> list[ChoiceDelta]:
        """Take the deltas that have arrived; never waits."""
        deltas = list(self._deltas)
        self._deltas.clear()
        return deltas

    def abort(self) -> None:
        """End the request now and free its resources; no effect once it has ended."""
        self._abort(self.request.id)

    def push(self, delta: ChoiceDelta) -> None:
        """Add a delta."""
        self._deltas.append(delta)
        self._wake.set()

    def close(self, error: PenstockError | None) -> None:
        """No delta follows; `error` is raised once the deltas are consumed."""
        self._closed = True
        self._error = error
        self._wake.set()
