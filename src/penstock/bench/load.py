"""Two kinds of load: a fixed number of clients (closed loop), or arrivals at a rate (open loop)."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence

from .record import RequestRecord

Send = Callable[[bytes], Awaitable[RequestRecord]]


async def closed_loop(
    send: Send, bodies: Sequence[bytes], *, concurrency: int
) -> list[RequestRecord]:
    """`concurrency` clients, each sending its next request when the last one ended."""
    queue = iter(bodies)

    async def client() -> list[RequestRecord]:
        return [await send(body) for body in queue]

    clients = (client() for _ in range(min(concurrency, len(bodies))))
    return [record for records in await asyncio.gather(*clients) for record in records]


async def open_loop(
    send: Send, bodies: Sequence[bytes], *, arrivals_s: Sequence[float], concurrency: int | None
) -> list[RequestRecord]:
    """Requests at given times, whether or not the earlier ones have ended.

    With `concurrency`, at most that many are in flight. A request's clock starts when it is sent,
    so the wait for a free place is in the run's duration, but not in the request's times.
    """
    places = asyncio.Semaphore(concurrency or len(bodies))
    begun_s = time.perf_counter()

    async def client(body: bytes, arrival_s: float) -> RequestRecord:
        await asyncio.sleep(begun_s + arrival_s - time.perf_counter())
        async with places:
            return await send(body)

    return await asyncio.gather(*map(client, bodies, arrivals_s))


def poisson_arrivals(count: int, *, rate_per_s: float, seed: int) -> list[float]:
    """Arrival times in seconds of a Poisson process, the first one at 0."""
    source = random.Random(seed)
    arrivals_s = [0.0]
    while len(arrivals_s) < count:
        arrivals_s.append(arrivals_s[-1] + source.expovariate(rate_per_s))
    return arrivals_s[:count]
