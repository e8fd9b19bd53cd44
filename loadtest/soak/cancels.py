"""Callers of twelve kinds who leave at a moment of their own, beside some who stay.

Whoever stays must get the text that the same question got alone; when all have gone, nothing may
run, wait or hold a page, and the server's memory may not have grown with the number of callers.
"""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from benchmarks.server_process import ServerProcess
from loadtest.leaks import wait_until_idle
from loadtest.soak.client import Leave, exchange
from loadtest.soak.verdict import Verdict
from penstock.bench.prompts import synthetic_text

ARGUMENTS = ("--kv-cache-memory", "64000000")
"""Of the server: a pool that is soon in use as a whole, or memory would grow as it is filled."""

CALLERS = 24
STAY = 0.1
"""Part of the callers who stay to the end."""

IDLE_S = 5.0
WARM = 0.25
"""Part of the time after which memory is read for the first time."""

GROWTH_BYTES = 96 * 2**20
"""The allocators' own unrest; a page, a text or a task kept for each caller would be more."""

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
CALM: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A request, and when its caller leaves."""

    name: str
    path: str
    fields: Callable[[random.Random], Fields]
    leave: Callable[[random.Random], Leave]


def _text(words: int) -> Callable[[random.Random], str]:
    return lambda source: synthetic_text(words, source)


def _completion(words: int, **fields: Any) -> Callable[[random.Random], Fields]:
    text = _text(words)
    return lambda source: {"prompt": text(source), "max_tokens": 200, "ignore_eos": True} | fields


def _chat(words: int, **fields: Any) -> Callable[[random.Random], Fields]:
    text = _text(words)
    return lambda source: {
        "messages": [{"role": "user", "content": text(source)}],
        "max_tokens": 200,
        "ignore_eos": True,
        **fields,
    }


def _soon(most_s: float, *, reset: bool = False) -> Callable[[random.Random], Leave]:
    return lambda source: Leave(after_s=source.uniform(0, most_s), reset=reset)


def _events(most: int, *, reset: bool = False) -> Callable[[random.Random], Leave]:
    return lambda source: Leave(events=source.randint(1, most), reset=reset)


def _cut(least: float, most: float) -> Callable[[random.Random], Leave]:
    return lambda source: Leave(sent=source.uniform(least, most))


KINDS = (
    Kind("in the head", COMPLETIONS, _completion(4), _cut(0.05, 0.3)),
    Kind("in the body", CHATS, _chat(400), _cut(0.5, 0.99)),
    Kind("before any answer", CHATS, _chat(8), lambda source: Leave()),
    Kind("while one piece is made", COMPLETIONS, _completion(8, n=2), _soon(0.3)),
    Kind("in a stream", CHATS, _chat(8, stream=True), _events(20)),
    Kind(
        "in a stream, by a reset", COMPLETIONS, _completion(8, stream=True), _events(9, reset=True)
    ),
    Kind("with eight choices", COMPLETIONS, _completion(8, stream=True, n=8), _events(40)),
    Kind("while the prompt is read", COMPLETIONS, _completion(1200), _soon(0.2, reset=True)),
    Kind("drafting", CHATS, _chat(8, stream=True, decoding="jacobi"), _events(20)),
    Kind(
        "guided",
        CHATS,
        _chat(8, stream=True, n=2, decoding={"cfg": {"scale": 1.5}}),
        _events(20),
    ),
    Kind(
        "evicting",
        COMPLETIONS,
        _completion(300, stream=True, kv_cache={"h2o": {"heavy": 0.1, "recent": 0.1}}),
        _events(20),
    ),
    Kind(
        "searching",
        CHATS,
        lambda source: {
            "messages": [{"role": "user", "content": "Use 4 9 10 13 to make 24."}],
            "stream": True,
            "decoding": source.choice(
                ({"beam": {"width": 4}}, {"best_of": {"n": 4}}, {"tot": {"task": "game24"}})
            ),
        },
        _soon(0.5),
    ),
)


async def cancels(server: ServerProcess, *, duration_s: float, seed: int) -> Verdict:
    """Callers come and go for `duration_s`; then the server must be as if nobody had been there."""
    verdict = Verdict(part="cancels")
    alone = (await exchange(server.url, COMPLETIONS, CALM)).text
    began_s = time.monotonic()
    counts = {kind.name: 0 for kind in KINDS}
    stayed = 0

    async def caller(number: int) -> None:
        nonlocal stayed
        source = random.Random(seed * 1_000 + number)
        while time.monotonic() - began_s < duration_s:
            if source.random() < STAY:
                answer = await exchange(server.url, COMPLETIONS, CALM)
                if answer.status == 429:
                    continue
                stayed += 1
                verdict.expect(answer.status == 200, f"who stays got status {answer.status}")
                if answer.status == 200:
                    verdict.expect(answer.text == alone, "who stays got another text than alone")
                continue
            kind = source.choice(KINDS)
            answer = await exchange(
                server.url, kind.path, kind.fields(source), leave=kind.leave(source)
            )
            counts[kind.name] += 1
            fine = answer.status in (0, 200, 429)
            verdict.expect(fine, f"who leaves {kind.name} got {answer.status}: {answer.body[:200]}")

    async def memory() -> tuple[int, int]:
        await asyncio.sleep(duration_s * WARM)
        early = memory_bytes(server.pid)
        await asyncio.sleep(max(0.0, began_s + duration_s - time.monotonic()))
        return early, memory_bytes(server.pid)

    watch = asyncio.create_task(memory())
    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    early, late = await watch
    ended_s = time.monotonic()
    leaks = await asyncio.to_thread(wait_until_idle, server.url, deadline_s=IDLE_S)
    for name, value in leaks.items():
        verdict.blame(f"{name} is {value:g} after {IDLE_S:g} s without callers")
    growth = late - early
    verdict.expect(growth < GROWTH_BYTES, f"memory grew by {growth >> 20} MiB")
    for name, count in counts.items():
        verdict.expect(count > 0, f"nobody left {name}")
    verdict.expect(stayed > 0, "nobody stayed")
    verdict.figures = {
        "callers who left": sum(counts.values()),
        "callers who stayed": stayed,
        "idle after, s": time.monotonic() - ended_s,
        "memory grew, MiB": growth / 2**20,
    }
    return verdict


def memory_bytes(pid: int) -> int:
    """Resident memory of a process and those that it started."""
    process = psutil.Process(pid)
    return sum(p.memory_info().rss for p in (process, *process.children(recursive=True)))
