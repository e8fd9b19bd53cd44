"""What searches have in common, wherever their controllers run."""

from collections.abc import Iterable

from ...decoding.search.operations import Outcome
from ..outputs.generation import Ended, Generation, Send
from ..outputs.request_times import RequestTimes
from ..requests.input_processor import InputProcessor
from ..state.messages import Message
from ..state.request import Request, Trace, Usage
from .driver import Search
from .subrequests import SubrequestBuilder


class SearchGeneration(Generation):
    """A request whose controller decides what runs: a `Search`, driven by a subclass.

    `seconds`: its time budget; None: unbounded.
    """

    def __init__(
        self,
        request: Request,
        *,
        input_processor: InputProcessor,
        send: Send,
        ended: Ended,
        times: RequestTimes | None = None,
    ) -> None:
        super().__init__(request, send=send, ended=ended, times=times)
        builder = SubrequestBuilder(request, input_processor)
        self.search = Search(request, builder)
        self.seconds = builder.budget.seconds

    @property
    def usage(self) -> Usage:
        """Token counts of all its subrequests."""
        return self.search.usage

    @property
    def prompt_logprobs(self) -> None:
        """None: searches have none."""
        return None

    @property
    def trace(self) -> Trace:
        """The tree so far."""
        return self.search.trace

    @property
    def sequences(self) -> int:
        """See `Generation`."""
        return self.request.sequences

    def leave(self) -> None:
        """See `Generation`."""
        self.send_all(self.search.close())
        if self.times is not None:
            self.times.search(self.usage)

    def answer(self, outcome: Outcome) -> None:
        """Give the caller the answers of the controller."""
        for delta in self.search.answers(outcome):
            self.outlet.push(delta)
        self.reason = "length" if self.search.exhausted is not None else "stop"

    def send_all(self, messages: Iterable[Message]) -> None:
        """Send messages to the engine, in order."""
        for message in messages:
            self.send(message)
