"""Model folders: each serves a token, or is refused in one line that names the folder.

Never another exception, a hang, or memory beyond a bound. Workers are forked from a process that
has imported torch, so that one that hangs is replaced in no time.
"""

import multiprocessing
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.fuzz.mutations import mutate
from tests.fuzz.report import Report

CASE_S = 60.0
ROOM_BYTES = 3 << 30
"""Of address space, beyond what a worker has at first."""
RESTART_CASES = 400
OUT_OF_MEMORY = ("allocate memory", "MemoryError", "bad_alloc", "Cannot allocate")
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
}
BASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "gemma2": {},
    "qwen3_moe": {},
    "phi3": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64},
}


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
    report: Report, *, seconds: float, workers: int, cases: Sequence[int] | None = None
) -> None:
    """Run cases for so long, or those given."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.fuzz.folders", "penstock.engine.llm"])
    end_s = time.monotonic() + seconds
    seeds = iter(report.cases() if cases is None else cases)
    with tempfile.TemporaryDirectory() as base:
        make_bases(Path(base))
        crew = [start(context, base) for _ in range(workers)]
        try:
            while True:
                now_s = time.monotonic()
                for place, worker in enumerate(crew):
                    if worker.case is None and worker.done >= RESTART_CASES:
                        worker.stop()
                        crew[place] = worker = start(context, base)
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
                        crew[place] = start(context, base)
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


def start(context: Any, base: str) -> Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, base), daemon=True)
    process.start()
    theirs.close()
    return Worker(process=process, connection=ours)


def make_bases(base: Path) -> None:
    from tests.tiny import save_tiny

    for kind, fields in BASES.items():
        save_tiny(kind, base / kind, **fields)


def work(connection: Connection, base: str) -> None:
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


def one(case: int, base: Path) -> tuple[str, str | None]:
    """Run a case: its outcome, and what is wrong with it, if anything."""
    source = random.Random(case)
    kind = source.choice(sorted(BASES))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        shutil.copytree(base / kind, folder)
        told = f"{kind}, {'; '.join(mutate(source, folder))}"
        outcome, wrong = judge(folder)
    return outcome, None if wrong is None else f"{wrong} [{told:.300}]"


def judge(folder: Path) -> tuple[str, str | None]:
    """Serve a token of a folder: `served` or `refused`, and what is wrong with that."""
    from penstock import LLM, SamplingParams
    from penstock.errors import ConfigurationError, RequestError

    try:
        llm = LLM(str(folder), threads=1, kv_cache_memory=4_000_000, max_running=2)
    except ConfigurationError as error:
        return "refused", _wrong_refusal(str(error), folder)
    except BaseException as error:
        return "raised", f"{type(error).__name__}: {str(error)[:200]!r}"
    try:
        params = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
        out = llm.generate("abc", params, use_tqdm=False)
    except RequestError:
        return "refused a prompt", None
    except BaseException as error:
        return "raised", f"when serving: {type(error).__name__}: {str(error)[:200]!r}"
    if getattr(out[0].error, "code", None) == "numerical_error":
        return "numbers overflow", None  # in weights that only some prompts reach
    served = len(out[0].outputs[0].token_ids)
    return "served", None if served == 2 else f"{served} of 2 tokens, error {out[0].error}"


def _wrong_refusal(said: str, folder: Path) -> str | None:
    if not said.isprintable() or len(said) > 1500:
        return f"no single line: {said[:200]!r}"
    if any(word in said for word in OUT_OF_MEMORY):
        return f"memory: {said}"
    names = (str(folder), "the architecture", "the model's logits", "--max-model-len")
    if not any(name in said for name in names):
        return f"names no file: {said}"
    if "the engine cannot be set up" in said or f"{folder}: cannot be loaded" in said:
        return f"no stage foresaw it: {said}"
    return None
