"""From loading to the end: who may be served when.

loading ──> ready ──> draining ──> stopped
   └──────> failed
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Literal

from penstock.errors import ConfigurationError, PenstockError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .backend import Backend

logger = logging.getLogger(__name__)

Phase = Literal["loading", "ready", "draining", "stopped", "failed"]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIGURATION = 2


class Lifecycle:
    """Loads the engine in a thread of its own, so that the server listens meanwhile.

    `on_ready`, `on_failed`: called on the event loop when loading has ended.
    """

    def __init__(self, load_engine: Callable[[], Backend]) -> None:
        self.phase: Phase = "loading"
        self.exit_code = EXIT_OK
        self.on_ready: list[Callable[[Backend], None]] = []
        self.on_failed: list[Callable[[], None]] = []
        self._load_engine = load_engine
        self._engine: Backend | None = None
        self._loader: threading.Thread | None = None
        self._settled = asyncio.Event()

    @property
    def engine(self) -> Backend:
        """The engine, alive.

        Raises:
            UnavailableError: not loaded yet, or no new requests are taken any more.
            EngineDeadError: it has failed, or hangs in a step.
        """
        if self.phase == "ready" and self._engine is not None:
            self._engine.check_health()
            return self._engine
        raise UnavailableError(_REASONS[self.phase])

    @property
    def is_ending(self) -> bool:
        """Whether connections end with the answer that they wait for."""
        return self.phase in {"draining", "stopped"}

    @property
    def is_loading(self) -> bool:
        """Whether the loading thread still runs, which nothing can interrupt."""
        return self._loader is not None and self._loader.is_alive()

    def start(self) -> None:
        """Begin to load. Call it on the event loop."""
        loop = asyncio.get_running_loop()

        def load() -> None:
            try:
                result: Backend | BaseException = self._load_engine()
            except BaseException as error:  # whatever ends this thread, somebody must hear of it
                result = error
            try:
                loop.call_soon_threadsafe(self._loaded, result)
            except RuntimeError:
                logger.debug("the event loop ended before the model was loaded")

        self._loader = threading.Thread(target=load, name="loader", daemon=True)
        self._loader.start()

    async def settled(self) -> None:
        """Wait until loading has ended, one way or the other."""
        await self._settled.wait()

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, let the running ones finish that long, end the rest.

        May be called again, with less time, while or after a first call was cancelled.
        """
        if self.phase in {"ready", "draining"} and self._engine is not None:
            self.phase = "draining"
            await self._engine.stop(timeout_s)
        if self.phase != "failed":
            self.phase = "stopped"

    def _loaded(self, result: Backend | BaseException) -> None:
        self._settled.set()
        if isinstance(result, BaseException):
            self._fail(result)
        elif self.phase == "loading":
            self._engine = result
            result.start()
            self.phase = "ready"
            for callback in self.on_ready:
                callback(result)

    def _fail(self, error: BaseException) -> None:
        self.phase = "failed"
        wrong_settings = isinstance(error, ConfigurationError)
        self.exit_code = EXIT_CONFIGURATION if wrong_settings else EXIT_FAILED
        unexpected = not isinstance(error, PenstockError)
        logger.error(
            "the model could not be loaded: %s",
            f"{type(error).__name__}: {error}" if unexpected else error,
            exc_info=error if unexpected and logger.isEnabledFor(logging.DEBUG) else None,
        )
        for callback in self.on_failed:
            callback()


_REASONS: dict[Phase, str] = {
    "loading": "the model is still loading; try again in a moment",
    "draining": "the server is shutting down; send the request to another one",
    "stopped": "the server is shutting down; send the request to another one",
    "failed": "the model could not be loaded; the server's log has the reason",
    "ready": "the server is not ready",
}
