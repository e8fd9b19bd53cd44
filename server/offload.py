"""A thread pool for chat templates and tokenisation: few threads at work, a bounded queue.

A thread that waits for a process to render a chat gives its place to the next job, so that a slow
template delays only the requests that use it. When a caller leaves, its job is not started if it
has not begun, and a rendering in progress is ended.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, ParamSpec, TypeVar

from penstock.errors import OverloadedError

from ..engine.requests.caller import CALLER, JobCaller

P = ParamSpec("P")
T = TypeVar("T")


class Offload:
    """Runs functions off the event loop, at most `threads` at once and `max_pending` in all."""

    def __init__(self, *, threads: int, max_pending: int) -> None:
        # Threads that wait for a rendering hold no place, so the pool has more threads than places.
        self._pool = ThreadPoolExecutor(max_pending, thread_name_prefix="intake")
        self._places = _Places(threads)
        self._max_pending = max_pending
        self._live: dict[Future[Any], JobCaller] = {}

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result.

        Raises:
            OverloadedError: `max_pending` jobs are live already.
        """
        if len(self._live) >= self._max_pending:
            raise OverloadedError(
                f"{len(self._live)} requests wait to be read; the limit is {self._max_pending}; "
                "try again in 1 s",
                retry_after_s=1,
            )
        loop = asyncio.get_running_loop()
        future: Future[T] = Future()
        caller = JobCaller(release=self._places.release, acquire=self._places.acquire)
        self._live[future] = caller
        # Not in a `finally`: a job that has begun stays live when its caller leaves.
        future.add_done_callback(lambda done: self._ended(loop, done))
        work = partial(self._work, future, caller, partial(function, *args, **kwargs))
        self._places.ask(partial(self._pool.submit, work))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            caller.leave()
            raise

    def close(self) -> None:
        """Cancel all jobs and shut the pool down without waiting for its threads."""
        for future, caller in list(self._live.items()):
            future.cancel()
            caller.leave()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self, future: "Future[T]", caller: JobCaller, function: Callable[[], T]) -> None:
        try:
            if not future.set_running_or_notify_cancel():
                return
            token = CALLER.set(caller)
            try:
                result = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            finally:
                CALLER.reset(token)
        finally:
            self._places.release()

    def _ended(self, loop: asyncio.AbstractEventLoop, done: "Future[Any]") -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._live.pop, done, None)


class _Places:
    """A first-come, first-served semaphore of `count` places."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._free = count
        self._waiting: deque[Callable[[], object]] = deque()

    def ask(self, go: Callable[[], object]) -> None:
        """Call `go` once a place is free; it then holds that place."""
        with self._lock:
            if self._free == 0:
                self._waiting.append(go)
                return
            self._free -= 1
        go()

    def acquire(self) -> None:
        """Wait for a place."""
        there = threading.Event()
        self.ask(there.set)
        there.wait()

    def release(self) -> None:
        """Give a place back."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            go = self._waiting.popleft()
        with suppress(RuntimeError):  # the pool is closed
            go()
