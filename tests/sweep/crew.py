"""One process for each model type: none can stop the sweep, or take memory or time without end.

They are forked from a process that has imported torch.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Final

import psutil

from tests.sweep.outcome import Kind, Outcome

TYPE_S: Final = 240.0
MOST_BYTES: Final = 6 << 30
"""Of memory."""
MOST_ADDRESSES: Final = 1 << 40
"""Bytes of address space: files may be mapped once for each tensor."""


@dataclass(slots=True, kw_only=True)
class _Worker:
    process: Any
    connection: Connection
    model_type: str
    begun_s: float

    def outcome(self) -> Outcome | None:
        """What it says; None: nothing yet."""
        taken_s = time.monotonic() - self.begun_s
        if self.connection.poll():
            try:
                return replace(self.connection.recv(), seconds=taken_s)
            except (EOFError, ConnectionError):
                self.process.join()
                reason = f"the process ended with {self.process.exitcode}"
        elif (held_bytes := self._held_bytes()) > MOST_BYTES:
            reason = f"it holds {held_bytes >> 20} MiB"
        elif taken_s > TYPE_S:
            reason = f"no end in {TYPE_S:.0f} s"
        else:
            return None
        return Outcome(model_type=self.model_type, kind=Kind.FAULT, reason=reason, seconds=taken_s)

    def _held_bytes(self) -> int:
        try:
            return psutil.Process(self.process.pid).memory_info().rss
        except psutil.NoSuchProcess:
            return 0

    def stop(self) -> None:
        """End it; one that has answered ends by itself."""
        self.connection.close()
        self.process.join(2.0)
        self.process.kill()
        self.process.join()


def sweep(
    types: Iterable[str],
    one: Callable[[str], Outcome],
    *,
    workers: int,
    seconds: float,
    tell: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run `one` for each type; none is begun after `seconds`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.sweep.checks"])
    end_s = time.monotonic() + seconds
    waiting = list(reversed(list(types)))
    crew: list[_Worker] = []
    outcomes: list[Outcome] = []
    try:
        while True:
            while waiting and len(crew) < workers and time.monotonic() < end_s:
                crew.append(_start(context, waiting.pop(), one))
            if not crew:
                return outcomes
            wait([worker.connection for worker in crew], timeout=0.5)
            for worker in list(crew):
                if (outcome := worker.outcome()) is not None:
                    worker.stop()
                    crew.remove(worker)
                    outcomes.append(outcome)
                    tell(outcome)
    finally:
        for worker in crew:
            worker.stop()


def _start(context: Any, model_type: str, one: Callable[[str], Outcome]) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, model_type, one), daemon=True)
    process.start()
    theirs.close()
    return _Worker(
        process=process, connection=ours, model_type=model_type, begun_s=time.monotonic()
    )


def _work(connection: Connection, model_type: str, one: Callable[[str], Outcome]) -> None:
    """In a process of its own."""
    import gc
    import logging
    import os
    import warnings

    import torch
    from transformers.utils import logging as transformers_logging

    gc.freeze()  # start-up collects garbage, which would look at all that was imported
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    transformers_logging.disable_progress_bar()
    if "PENSTOCK_SWEEP_DEBUG" not in os.environ:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in Rust and C++ write to it
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    connection.send(one(model_type))
