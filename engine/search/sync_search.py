"""A search between the steps of the engine, in the caller's thread: for `LLM`."""

import time
from collections.abc import Mapping

from ...errors import EvaluatorError, PenstockError
from ..outputs.generation import Ended, Send
from ..requests.input_processor import InputProcessor
from ..state.request import Request, StepOutput
from .evaluators import Function, checked
from .search_generation import SearchGeneration


class SyncSearch(SearchGeneration):
    """A search whose controller runs wherever its results arrive."""

    def __init__(
        self,
        request: Request,
        *,
        input_processor: InputProcessor,
        evaluators: Mapping[str, Function],
        send: Send,
        ended: Ended,
    ) -> None:
        super().__init__(request, input_processor=input_processor, send=send, ended=ended)
        self._evaluators = evaluators
        self._over = False
        self._until_s = time.monotonic() + (self.seconds or 0.0)

    def begin(self) -> None:
        """See `Generation`."""
        self._advance()

    def feed(self, output: StepOutput, now_s: float) -> None:
        """See `Generation`."""
        self.send_all(self.search.feed(output))
        self._advance()

    def check_time(self) -> None:
        """End the search if its time is up."""
        if time.monotonic() > self._until_s and not self._over:
            self.send_all(self.search.expire())
            self._advance()

    def _advance(self) -> None:
        """Go on until the search needs a result of the engine; end it if it cannot go on."""
        if self._over:
            return
        try:
            self._run()
        except PenstockError as error:  # a request of its own, an evaluator or the controller
            self._over = True
            self.end(error)

    def _run(self) -> None:
        search = self.search
        while search.ready:
            search.advance()
            search.take_nodes()
            self.send_all(search.launch())
            for number, operation in list(search.evaluations.items()):
                function = self._evaluators.get(operation.name)
                if function is None:
                    raise EvaluatorError(f"there is no evaluator {operation.name!r}")
                scores = function(operation.problem, operation.candidates)
                search.evaluated(number, checked(operation, scores))
        if search.outcome is not None:
            self._over = True
            self.answer(search.outcome)
            self.end()
