"""Who waits for the work of a thread, and what the thread does while it waits for somebody else."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar


class CallerLeftError(Exception):
    """The work was given up, because nobody waits for it."""


class Caller:
    """Waits for a piece of work, and may leave before it is done.

    `release`, `acquire`: give the thread's place to another piece of work, and take one again.
    """

    def __init__(
        self,
        *,
        release: Callable[[], None] = lambda: None,
        acquire: Callable[[], None] = lambda: None,
    ) -> None:
        self._release = release
        self._acquire = acquire
        self._lock = threading.Lock()
        self._left = False
        self._on_leave: Callable[[], None] | None = None

    @property
    def left(self) -> bool:
        """Whether nobody waits any more."""
        return self._left

    def leave(self) -> None:
        """Nobody waits any more; called from any thread."""
        with self._lock:
            self._left = True
            if self._on_leave is not None:
                self._on_leave()

    @contextmanager
    def elsewhere(self, on_leave: Callable[[], None]) -> Generator[None]:
        """The thread waits for work elsewhere; `on_leave` ends that, and must not block."""
        with self._lock:
            self._on_leave = on_leave
            if self._left:
                on_leave()
        self._release()
        try:
            yield
        finally:
            with self._lock:
                self._on_leave = None
            self._acquire()


CALLER: ContextVar[Caller] = ContextVar("CALLER", default=Caller())  # noqa: B039 - never leaves
"""Of the current thread's work; without one nobody can leave."""
