"""A search in the caller's thread, for `LLM`: calls the engine directly, without an event loop."""

import time
from collections.abc import Iterable, Mapping

from ...errors import EvaluatorError, GenerationError
from ..core.engine import Engine
from ..requests.input_processor import InputProcessor
from ..state.messages import Abort, Message
from ..state.request import ChoiceDelta, Request, StepOutput, Trace, Usage
from .driver import Search
from .evaluators import Function, checked
from .subrequests import SubrequestBuilder


class SyncSearch:
    """Runs a `Search` between the engine's steps."""

    def __init__(
        self,
        request: Request,
        input_processor: InputProcessor,
        engine: Engine,
        evaluators: Mapping[str, Function],
    ) -> None:
        maker = SubrequestBuilder(request, input_processor)
        self._search = Search(request, maker)
        self._engine = engine
        self._evaluators = evaluators
        self.error: GenerationError | None = None
        self._until_s = time.monotonic() + (maker.budget.seconds or 0.0)

    @property
    def usage(self) -> Usage:
        """Token counts of all its subrequests."""
        return self._search.usage

    @property
    def trace(self) -> Trace:
        """The tree so far."""
        return self._search.trace

    @property
    def ended(self) -> bool:
        """Whether it has an outcome or has failed."""
        return self._search.outcome is not None or self.error is not None

    def advance(self) -> None:
        """Go on until the search needs a result of the engine.

        Raises:
            PenstockError: an evaluator, or the controller, cannot go on.
        """
        search = self._search
        while search.ready and self.error is None:
            try:
                search.advance()
            except GenerationError as error:
                self.error = error
                self.close()
                return
            search.take_nodes()
            self._send(search.launch())
            for number, operation in list(search.evaluations.items()):
                function = self._evaluators.get(operation.name)
                if function is None:
                    raise EvaluatorError(f"there is no evaluator {operation.name!r}")
                scores = function(operation.problem, operation.candidates)
                search.evaluated(number, checked(operation, scores))

    def feed(self, output: StepOutput) -> None:
        """Take in an output of one of its subrequests."""
        self._send(self._search.feed(output))
        self.advance()

    def check_time(self) -> None:
        """End the search if its time is up."""
        if time.monotonic() > self._until_s and not self.ended:
            self._send(self._search.expire())
            self.advance()

    def answers(self) -> list[ChoiceDelta]:
        """One delta per choice."""
        outcome = self._search.outcome
        assert outcome is not None, "whatever runs ends"
        return self._search.answers(outcome)

    def close(self) -> None:
        """End the search at any point and free everything."""
        self._send(self._search.close())

    def _send(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if isinstance(message, Request):
                self._engine.add(message)
            elif isinstance(message, Abort):
                self._engine.abort(message.request_id, message.index)
            else:
                self._engine.release(message.names)
