"""Cancels a thread's job when its caller leaves, and frees its place while it waits elsewhere."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar


class CallerLeftError(Exception):
    """The job was cancelled, because its caller has left."""


class JobCaller:
    """The caller of one job, who may leave before it is done.

    `release`, `acquire`: free the thread's place for another job, and take a place again.
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
        """Whether the caller has left."""
        return self._left

    def leave(self) -> None:
        """Record that the caller has left; may be called from any thread."""
        with self._lock:
            self._left = True
            if self._on_leave is not None:
                self._on_leave()

    @contextmanager
    def elsewhere(self, on_leave: Callable[[], None]) -> Generator[None]:
        """Wraps waiting for work outside the thread; `on_leave` cancels it and must not block."""
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


CALLER: ContextVar[JobCaller] = ContextVar("CALLER", default=JobCaller())  # noqa: B039 - never leaves
"""The caller of the current thread's job; the default one never leaves."""
