"""Processes that run the cases of a kind: one that hangs or dies is replaced in no time.

They are forked from a process that has imported torch.
"""

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.fuzz.report import Report

CASE_S = 60.0
ROOM_BYTES = 3 << 30
"""Of address space, beyond what a worker has at first."""
RESTART_CASES = 400

One = Callable[[int, Path], tuple[str, str | None]]
"""Runs a case on what is in a folder: its outcome, and what is wrong with it, if anything."""


@dataclass(slots=True, kw_only=True)
class Worker:
    """A process that runs cases. `case`: the one that it runs now, until `end_s`."""

    process: Any
    connection: Connection
    case: int | None = None
    end_s: float = 0.0
    done: int = 0

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def run(
    report: Report,
    make_bases: Callable[[Path], None],
    one: One,
    *,
    seconds: float,
    workers: int,
    cases: Sequence[int] | None = None,
) -> None:
    """Run cases for so long, or those given, on what `make_bases` puts into a folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fuzz.crew", "penstock.engine.llm"])
    end_s = time.monotonic() + seconds
    seeds = iter(report.cases() if cases is None else cases)
    with tempfile.TemporaryDirectory() as base:
        make_bases(Path(base))
        crew = [start(context, base, one) for _ in range(workers)]
        try:
            while True:
                now_s = time.monotonic()
                for place, worker in enumerate(crew):
                    if worker.case is None and worker.done >= RESTART_CASES:
                        worker.stop()
                        crew[place] = worker = start(context, base, one)
                    if worker.case is None and (cases is not None or now_s < end_s):
                        case = next(seeds, None)
                        if case is not None:
                            worker.case, worker.end_s = case, time.monotonic() + CASE_S
                            worker.connection.send(case)
                busy = [worker for worker in crew if worker.case is not None]
                if not busy:
                    return
                ready = wait([worker.connection for worker in busy], timeout=0.5)
                for place, worker in enumerate(crew):
                    if worker.case is None:
                        continue
                    if worker.connection in ready:
                        alive = take(worker, report)
                    elif time.monotonic() > worker.end_s:
                        report.add(worker.case, "hung", f"no answer in {CASE_S:g} s")
                        alive = False
                    else:
                        continue
                    if not alive:
                        worker.stop()
                        crew[place] = start(context, base, one)
        finally:
            for worker in crew:
                worker.stop()


def take(worker: Worker, report: Report) -> bool:
    """Note what a worker says; whether it can go on."""
    assert worker.case is not None
    try:
        outcome, finding = worker.connection.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        report.add(worker.case, "died", f"the process ended with {worker.process.exitcode}")
        return False
    report.add(worker.case, outcome, finding)
    worker.case = None
    worker.done += 1
    return True


def start(context: Any, base: str, one: One) -> Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, base, one), daemon=True)
    process.start()
    theirs.close()
    return Worker(process=process, connection=ours)


def work(connection: Connection, base: str, one: One) -> None:
    """Run the cases that come, in a process of its own."""
    import logging
    import os

    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    transformers_logging.disable_progress_bar()
    # Libraries in Rust and C++ write to the descriptor itself.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = taken + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        connection.send(one(case, Path(base)))
