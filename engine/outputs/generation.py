"""A running request: takes in its outputs of each step, and gives its caller deltas."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from ...errors import PenstockError
from ..requests.tokenizer import Tokenizer
from ..state.messages import Abort, Message
from ..state.request import ChoiceDelta, Request, StepOutput, TokenLogprobs, Trace, Usage
from .output_state import OutputState
from .request_times import RequestTimes

Send = Callable[[Message], None]
"""Sends a message to the engine."""
Ended = Callable[["Generation", PenstockError | None], None]
"""Ends a generation that is over, with the error if it has failed: `OutputProcessor.end`."""


class Outlet(Protocol):
    """Where the deltas of a generation go."""

    def push(self, delta: ChoiceDelta) -> None:
        """Take the next delta."""
        ...

    def close(self, error: PenstockError | None) -> None:
        """No delta follows; `error`: why the request failed."""
        ...


class Generation(ABC):
    """One running request. An `OutputProcessor` begins it, feeds it and leaves it.

    `send`: to the engine. `reason`: how it ended, for metrics; "abort" until its last choice has
    ended. `times`: its part of the metrics; None: nobody measures.
    """

    outlet: Outlet

    def __init__(
        self, request: Request, *, send: Send, ended: Ended, times: RequestTimes | None = None
    ) -> None:
        self.request = request
        self.times = times
        self.reason = "abort"
        self.send = send
        self._ended = ended

    @property
    @abstractmethod
    def usage(self) -> Usage:
        """Token counts so far."""

    @property
    @abstractmethod
    def prompt_logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        """Available from the first delta on, if they were asked for."""

    @property
    @abstractmethod
    def trace(self) -> Trace | None:
        """The tree of a search; None: this is not a search."""

    @property
    @abstractmethod
    def sequences(self) -> int:
        """Sequences that it runs, or may still run, at once."""

    @abstractmethod
    def begin(self) -> None:
        """Send the engine what runs first."""

    @abstractmethod
    def feed(self, output: StepOutput, now_s: float) -> None:
        """Take in an output of the engine; `now_s`: when its step was known."""

    @abstractmethod
    def leave(self) -> None:
        """Abort in the engine whatever has not ended, and free everything."""

    def end(self, error: PenstockError | None = None) -> None:
        """Tell the processor that it is over; `error`: it has failed."""
        self._ended(self, error)


class PlainGeneration(Generation):
    """A request that the engine runs as it is."""

    def __init__(
        self,
        request: Request,
        *,
        tokenizer: Tokenizer,
        send: Send,
        ended: Ended,
        times: RequestTimes | None = None,
    ) -> None:
        super().__init__(request, send=send, ended=ended, times=times)
        self._state = OutputState(request, tokenizer)

    @property
    def usage(self) -> Usage:
        """See `Generation`."""
        return self._state.usage

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        """See `Generation`."""
        return self._state.prompt_logprobs

    @property
    def trace(self) -> None:
        """None: it is not a search."""
        return None

    @property
    def sequences(self) -> int:
        """See `Generation`; fewer with each choice that ends."""
        return self._state.open_choices * (1 + len(self.request.contexts))

    def begin(self) -> None:
        """See `Generation`."""
        self.send(self.request)

    def feed(self, output: StepOutput, now_s: float) -> None:
        """See `Generation`."""
        state = self._state
        if output.failure is not None:
            if state.fails(output):
                self.end(output.failure.error())
            return
        delta, ended_by_text = state.feed(output)
        if delta is None:
            return
        if ended_by_text:
            self.send(Abort(request_id=output.request_id, index=output.index))
        if self.times is not None:
            self.times.choice(delta, output.first_scheduled_s, state.usage, now_s)
        self.outlet.push(delta)
        if state.finished:
            self.reason = delta.finish_reason or "stop"
            self.end()

    def leave(self) -> None:
        """See `Generation`."""
        if not self._state.finished:
            self.send(Abort(request_id=self.request.id))
