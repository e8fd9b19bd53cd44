"""The generations of one HTTP request: submitted together, consumed together, freed together."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from penstock.errors import EXITS

from ..engine.outputs.choice_result import ChoiceResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Sequence

    from ..engine.state.request import ChoiceDelta, Request
    from .backend import AnswerStream, Backend


@contextmanager
def submitted(engine: Backend, requests: Sequence[Request]) -> Generator[list[AnswerStream]]:
    """All requests running, or none; whatever has not ended on the way out is aborted.

    Raises:
        OverloadedError, UnavailableError: as `submit`.
    """
    generations: list[AnswerStream] = []
    try:
        for request in requests:
            generations.append(engine.submit(request))  # noqa: PERF401 - the rest must be aborted
        yield generations
    finally:
        for generation in generations:
            generation.abort()


async def collect(generations: Sequence[AnswerStream]) -> list[list[ChoiceResult]]:
    """Everything that every choice of every generation brings."""
    results: list[list[ChoiceResult]] = []
    for generation in generations:  # one after the other: each keeps what comes meanwhile
        choices = [ChoiceResult() for _ in range(generation.request.n)]
        async for delta in generation:
            choices[delta.index].add(delta)
        results.append(choices)
    return results


async def merged(
    generations: Sequence[AnswerStream],
) -> AsyncIterator[list[tuple[int, ChoiceDelta]]]:
    """What has come, as soon as anything has: (number of the generation, delta) pairs."""
    if len(generations) == 1:
        only = generations[0]
        async for delta in only:
            yield [(0, delta), *((0, later) for later in only.ready())]
        return
    arrived: asyncio.Queue[tuple[int, ChoiceDelta] | BaseException | None] = asyncio.Queue()

    async def forward(number: int, generation: AnswerStream) -> None:
        try:
            async for delta in generation:
                arrived.put_nowait((number, delta))
            arrived.put_nowait(None)
        except EXITS:
            raise
        except BaseException as error:
            arrived.put_nowait(error)

    tasks = [asyncio.create_task(forward(*pair)) for pair in enumerate(generations)]
    try:
        open_ones = len(tasks)
        while open_ones:
            batch: list[tuple[int, ChoiceDelta]] = []
            items = [await arrived.get()]
            while not arrived.empty():
                items.append(arrived.get_nowait())
            for item in items:
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    open_ones -= 1
                else:
                    batch.append(item)
            if batch:
                yield batch
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
