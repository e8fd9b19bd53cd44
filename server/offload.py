"""A small pool of threads for templates and tokenisation, with a bound on what waits for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from penstock.errors import OverloadedError

P = ParamSpec("P")
T = TypeVar("T")


class Offload:
    """Runs functions off the event loop, at most `threads` at once and `max_pending` in all."""

    def __init__(self, *, threads: int, max_pending: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="intake")
        self._max_pending = max_pending
        self._pending = 0

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result.

        Raises:
            OverloadedError: too many wait already.
        """
        if self._pending >= self._max_pending:
            raise OverloadedError(
                f"{self._pending} requests wait to be read; the limit is {self._max_pending}; "
                "try again in 1 s",
                retry_after_s=1,
            )
        loop = asyncio.get_running_loop()
        future = self._pool.submit(function, *args, **kwargs)
        self._pending += 1
        # Not in a finally: a caller who leaves does not empty the queue, the finished job does.
        future.add_done_callback(lambda done: self._ended(loop, done))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Let go of the threads; what has not begun is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ended(self, loop: asyncio.AbstractEventLoop, _: "Future[Any]") -> None:
        def count() -> None:
            self._pending -= 1

        if not loop.is_closed():
            loop.call_soon_threadsafe(count)
