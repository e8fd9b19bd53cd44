"""Work that ends when its caller leaves."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

T = TypeVar("T")


async def until_disconnect(
    receive: Receive,
    work: Coroutine[Any, Any, T],
    *,
    every_s: float | None = None,
    tick: Callable[[], Awaitable[None]] | None = None,
) -> T:
    """Run `work`, and `tick` every `every_s` seconds meanwhile; the body must have been read.

    Raises:
        ClientDisconnect: the caller left; the work was cancelled.
    """
    worker = asyncio.create_task(work)
    watcher = asyncio.create_task(_left(receive))
    try:
        while True:
            done, _ = await asyncio.wait(
                {worker, watcher}, timeout=every_s, return_when=asyncio.FIRST_COMPLETED
            )
            if worker in done:
                return worker.result()
            if watcher in done:
                raise ClientDisconnect
            if tick is not None:
                await tick()
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
