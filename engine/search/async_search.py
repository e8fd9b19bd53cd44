"""A search (a request with a controller) on the event loop, as a `Generation`."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from ...decoding.search.operations import Evaluate, Outcome
from ...errors import EXITS, EvaluatorError, PenstockError
from ..outputs.generation import Generation
from ..outputs.metrics import DecodingMetrics
from ..requests.input_processor import InputProcessor
from ..state.messages import Message
from ..state.request import ChoiceDelta, Request, StepOutput, Trace, Usage
from .driver import Search
from .evaluators import Evaluator, checked
from .subrequests import SubrequestBuilder

logger = logging.getLogger(__name__)


class AsyncSearch(Generation):
    """Runs a `Search`. `send`: to the engine. `ended`: called once, with the error if any.

    The controller runs in another thread, so that it does not delay other requests.
    """

    def __init__(
        self,
        request: Request,
        *,
        input_processor: InputProcessor,
        metrics: DecodingMetrics,
        submitted_s: float,
        abort: Callable[[str], None],
        send: Callable[[Message], None],
        ended: Callable[["AsyncSearch", PenstockError | None], None],
        evaluators: Mapping[str, Evaluator],
    ) -> None:
        super().__init__(
            request,
            tokenizer=input_processor.tokenizer,
            metrics=metrics,
            submitted_s=submitted_s,
            abort=abort,
        )
        maker = SubrequestBuilder(request, input_processor)
        self.search = Search(request, maker)
        self._seconds = maker.budget.seconds
        self._send_one = send
        self._ended = ended
        self._evaluators = evaluators
        self._due = asyncio.Event()
        self._asking: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def usage(self) -> Usage:
        """Token counts of all its subrequests."""
        return self.search.usage

    @property
    def trace(self) -> Trace:
        """The tree so far."""
        return self.search.trace

    @property
    def sequences(self) -> int:
        """Sequences that it may run at once."""
        return self.request.sequences

    def begin(self) -> None:
        """Start the search; call it on the running event loop."""
        loop = asyncio.get_running_loop()
        if self._seconds is not None:
            self._timer = loop.call_later(self._seconds, self._expire)
        self._task = loop.create_task(self._drive())

    def feed(self, output: StepOutput) -> None:
        """Take in an output of one of its subrequests."""
        self._send(self.search.feed(output))
        self._due.set()

    def leave(self) -> None:
        """Abort its subrequests and free everything; no effect when called again."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._asking:
            task.cancel()
        self._send(self.search.close())
        if self._task is not None and self._task is not _current_task():
            self._task.cancel()

    async def _drive(self) -> None:
        error: PenstockError | None = None
        try:
            outcome = await self._run()
            self._answer(outcome)
        except PenstockError as problem:
            error = problem
        except EXITS:
            raise
        except BaseException:  # a controller or an evaluator may come from a plug-in
            logger.exception("the search of request %s has failed", self.request.id)
            error = PenstockError("the search has failed; the server's log has the details")
        self._ended(self, error)

    async def _run(self) -> Outcome:
        search = self.search
        while True:
            await asyncio.to_thread(search.advance)
            nodes = tuple(search.take_nodes())
            if nodes:
                self.push(ChoiceDelta(index=0, text="", nodes=nodes))
            if search.outcome is not None:
                return search.outcome
            self._send(search.launch())
            await self._evaluate(dict(search.evaluations))
            while not search.ready:
                self._due.clear()
                await self._due.wait()

    async def _evaluate(self, asked: Mapping[int, Evaluate]) -> None:
        if not asked:
            return
        self._asking = [asyncio.create_task(self._ask(*item)) for item in asked.items()]
        await asyncio.wait(self._asking)
        for task in self._asking:
            if not task.cancelled():
                task.result()
        self._asking = []

    async def _ask(self, number: int, operation: Evaluate) -> None:
        evaluator = self._evaluators.get(operation.name)
        if evaluator is None:
            raise EvaluatorError(f"there is no evaluator {operation.name!r}")
        scores = await evaluator(operation.problem, operation.candidates)
        self.search.evaluated(number, checked(operation, scores))

    def _expire(self) -> None:
        for task in self._asking:
            task.cancel()
        self._send(self.search.expire())
        self._due.set()

    def _answer(self, outcome: Outcome) -> None:
        for delta in self.search.answers(outcome):
            self.push(delta)
        self.reason = "length" if self.search.exhausted is not None else "stop"

    def _send(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self._send_one(message)


def _current_task() -> "asyncio.Task[None] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:  # not called from an event loop
        return None
