"""Where an engine runs, as the event loop sees it: a thread of this process, or another process."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ..core.engine import Engine
from ..core.loop import EngineLoop
from ..state.messages import Inbox, Message
from ..state.request import StepOutput
from ..state.stats import EngineStats

JOIN_S = 30.0

OnStep = Callable[[list[StepOutput], int], None]
OnFailure = Callable[[str], None]


class EngineHost(Protocol):
    """Runs one engine. Call its methods on the event loop; only `stop` waits."""

    def start(self, on_step: OnStep, on_failure: OnFailure) -> None:
        """Begin. Both functions are called on the running event loop: `on_step` with the outputs
        and rows of a step, `on_failure` with the reason when the engine has failed."""
        ...

    def send(self, message: Message) -> None:
        """Send a message to the engine."""
        ...

    async def load_adapter(self, key: str, folder: Path) -> None:
        """Read an adapter, while steps go on; requests may name its key afterwards.

        Raises:
            ConfigurationError: it cannot be read, or is not for this model.
        """
        ...

    async def stop(self) -> None:
        """Stop the engine and wait for its end, up to a limit."""
        ...

    def stats(self) -> EngineStats:
        """Counters and gauges as of the last step."""
        ...

    def busy_since_s(self) -> float | None:
        """Clock time at which the running step began; None: no step is running."""
        ...


class ThreadHost:
    """An engine in a thread of its own."""

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._inbox: Inbox = Inbox()
        self._loop: EngineLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self, on_step: OnStep, on_failure: OnFailure) -> None:
        """See `EngineHost`."""
        events = asyncio.get_running_loop()

        def stepped(outputs: list[StepOutput], rows: int) -> None:
            _call(events, on_step, outputs, rows)

        def failed(name: str) -> None:
            _call(events, on_failure, name)

        self._loop = EngineLoop(
            self._engine, self._inbox, self._clock, on_step=stepped, on_failure=failed
        )
        self._thread = threading.Thread(target=self._loop.run, name="engine", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        """See `EngineHost`."""
        self._inbox.put(message)

    async def load_adapter(self, key: str, folder: Path) -> None:
        """See `EngineHost`."""
        await asyncio.to_thread(self._engine.adapters.load, key, folder)

    async def stop(self) -> None:
        """See `EngineHost`."""
        self._inbox.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, JOIN_S)

    def stats(self) -> EngineStats:
        """See `EngineHost`."""
        return self._engine.stats()

    def busy_since_s(self) -> float | None:
        """See `EngineHost`."""
        return None if self._loop is None else self._loop.step_started_s


def _call(events: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: object) -> None:
    """Call on an event loop from another thread; ignored if the loop has closed."""
    try:
        events.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        return
