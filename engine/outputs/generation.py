"""A running request as its caller sees it: an asynchronous iterator of deltas."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Self

from ...errors import PenstockError
from ..requests.tokenizer import Tokenizer
from ..state.request import ChoiceDelta, Request, TokenLogprobs, Trace, Usage
from .metrics import DecodingMetrics
from .output_state import OutputState


class Generation(AsyncIterator[ChoiceDelta]):
    """One running request; iterate over it for the deltas of all choices, in order of arrival.

    Iteration raises GenerationError if the request has failed, and EngineDeadError or
    UnavailableError if it cannot be finished.
    """

    def __init__(
        self,
        request: Request,
        *,
        tokenizer: Tokenizer,
        metrics: DecodingMetrics,
        submitted_s: float,
        abort: Callable[[str], None],
    ) -> None:
        self.request = request
        self.submitted_s = submitted_s
        self.started_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s: dict[int, float] = {}
        self.output_state = OutputState(request, tokenizer)
        self.metrics = metrics
        self.reason = "abort"
        self._abort = abort
        self._deltas: deque[ChoiceDelta] = deque()
        self._wake = asyncio.Event()
        self._error: PenstockError | None = None
        self._closed = False

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return self.output_state.usage

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        """Available from the first delta on, if they were asked for."""
        return self.output_state.prompt_logprobs

    @property
    def trace(self) -> Trace | None:
        """The tree of a search; None: this is not a search."""
        return None

    @property
    def sequences(self) -> int:
        """Sequences that it runs, or may still run, at once."""
        return self.output_state.open_choices * (1 + len(self.request.contexts))

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
        """Add a delta from the engine."""
        self._deltas.append(delta)
        self._wake.set()

    def close(self, error: PenstockError | None = None) -> None:
        """No delta follows; `error` is raised once the deltas are consumed."""
        self._closed = True
        self._error = error
        self._wake.set()
