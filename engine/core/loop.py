"""The engine's loop: take messages, make a step, pass on its outputs."""

import logging
import queue
from collections.abc import Callable

from ..state.messages import DropAdapter, Inbox, Message, Release
from ..state.request import Request, StepOutput
from .engine import Engine

logger = logging.getLogger(__name__)


def take(engine: Engine, message: Message) -> None:
    """Carry out a message, between two steps."""
    if isinstance(message, Request):
        engine.add(message)
    elif isinstance(message, Release):
        engine.release(message.names)
    elif isinstance(message, DropAdapter):
        engine.adapters.drop(message.key)
    else:
        engine.abort(message.request_id, message.index)


class EngineLoop:
    """Runs an engine until told to stop, or until a step fails.

    `on_step`: gets the outputs and the number of rows of a step; also called, with neither, after
    the last request was aborted and when the loop ends. `on_failure`: gets the error's class name.
    """

    def __init__(
        self,
        engine: Engine,
        inbox: Inbox,
        clock: Callable[[], float],
        *,
        on_step: Callable[[list[StepOutput], int], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self.step_started_s: float | None = None
        self.taken = 0
        self._engine = engine
        self._inbox = inbox
        self._clock = clock
        self._on_step = on_step
        self._on_failure = on_failure

    def run(self) -> None:
        """Step while there is work, wait for messages while there is none."""
        try:
            while self._take_messages(wait=not self._engine.has_work):
                self.step_started_s = self._clock()
                outputs = self._engine.step()
                self.step_started_s = None
                self._on_step(outputs, self._engine.last_rows)
            self._on_step([], 0)
        except BaseException as error:  # reported, whatever it is: the loop ends here
            logger.exception("the engine has failed")
            # First: freeing may fail too, after a step half done.
            self._on_failure(type(error).__name__)
            self._engine.abort_all()

    def _take_messages(self, *, wait: bool) -> bool:
        """Handle what is in the inbox; False when told to stop."""
        while True:
            try:
                message = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            wait = False
            if message is None:
                return False
            self.taken += 1
            take(self._engine, message)
