"""A search (a request with a controller) on the event loop."""

import asyncio
import logging
from collections.abc import Mapping

from ...decoding.search.operations import Evaluate, Outcome
from ...errors import EXITS, EvaluatorError, PenstockError
from ..outputs.generation import Ended, Send
from ..outputs.request_times import RequestTimes
from ..requests.input_processor import InputProcessor
from ..state.request import ChoiceDelta, Request, StepOutput
from .evaluators import Evaluator, checked
from .search_generation import SearchGeneration

logger = logging.getLogger(__name__)


class AsyncSearch(SearchGeneration):
    """A search whose controller runs in a thread, so that it does not delay other requests."""

    def __init__(
        self,
        request: Request,
        *,
        input_processor: InputProcessor,
        evaluators: Mapping[str, Evaluator],
        send: Send,
        ended: Ended,
        times: RequestTimes | None = None,
    ) -> None:
        super().__init__(
            request, input_processor=input_processor, send=send, ended=ended, times=times
        )
        self._evaluators = evaluators
        self._due = asyncio.Event()
        self._asking: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """See `Generation`; call it on the running event loop."""
        loop = asyncio.get_running_loop()
        if self.seconds is not None:
            self._timer = loop.call_later(self.seconds, self._expire)
        self._task = loop.create_task(self._drive())

    def feed(self, output: StepOutput, now_s: float) -> None:
        """See `Generation`."""
        self.send_all(self.search.feed(output))
        self._due.set()
        if self.times is not None:
            self.times.subrequest(output, now_s)

    def leave(self) -> None:
        """See `Generation`."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._asking:
            task.cancel()
        super().leave()
        if self._task is not None and self._task is not _current_task():
            self._task.cancel()

    async def _drive(self) -> None:
        error: PenstockError | None = None
        try:
            self.answer(await self._run())
        except PenstockError as problem:
            error = problem
        except EXITS:
            raise
        except BaseException:  # a controller or an evaluator may come from a plug-in
            logger.exception("the search of request %s has failed", self.request.id)
            error = PenstockError("the search has failed; the server's log has the details")
        self.end(error)

    async def _run(self) -> Outcome:
        search = self.search
        while True:
            await asyncio.to_thread(search.advance)
            nodes = tuple(search.take_nodes())
            if nodes:
                self.outlet.push(ChoiceDelta(index=0, text="", nodes=nodes))
            if search.outcome is not None:
                return search.outcome
            self.send_all(search.launch())
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
        self.send_all(self.search.expire())
        self._due.set()


def _current_task() -> "asyncio.Task[None] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:  # not called from an event loop
        return None
