"""More callers than places: each is answered in full, or told when to come again."""

import asyncio
import random
import time
from typing import Any

from benchmarks.server_process import ServerProcess
from loadtest.contract import ContractError, check_completion
from loadtest.leaks import wait_until_idle
from loadtest.soak.client import exchange
from loadtest.soak.verdict import Verdict
from penstock.bench.prompts import synthetic_text

CALLERS = 192
RUNNING, QUEUED = 32, 16
ARGUMENTS = ("--max-running", str(RUNNING), "--max-queued-requests", str(QUEUED))
"""Of the server: a quarter as many places as callers."""

TOKENS = 48
IDLE_S = 5.0


async def overload(server: ServerProcess, *, duration_s: float, seed: int) -> Verdict:
    """Every caller asks again and again; one who was refused waits for as long as it was told."""
    verdict = Verdict(part="overload")
    began_s = time.monotonic()
    answered = refused = 0
    served: set[int] = set()

    async def caller(number: int) -> None:
        nonlocal answered, refused
        source = random.Random(seed * 1_000 + number)
        while time.monotonic() - began_s < duration_s or number not in served:
            fields: dict[str, Any] = {
                "prompt": synthetic_text(source.choice((4, 40, 200)), source),
                "max_tokens": TOKENS,
            }
            answer = await exchange(server.url, "/v1/completions", fields)
            verdict.expect(answer.complete, "an answer was cut")
            if answer.status == 429:
                refused += 1
                told = answer.headers.get("retry-after", "")
                verdict.expect(told.isdigit() and int(told) >= 1, f"Retry-After was {told!r}")
                verdict.expect(bool(answer.error), "a 429 without an error object")
                await asyncio.sleep(int(told) if told.isdigit() else 1)
                continue
            verdict.expect(answer.status == 200, f"status {answer.status}")
            try:
                check_completion(answer.json, max_tokens=TOKENS)
            except ContractError as error:
                verdict.blame(str(error))
            served.add(number)
            answered += 1

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    leaks = await asyncio.to_thread(wait_until_idle, server.url, deadline_s=IDLE_S)
    for name, value in leaks.items():
        verdict.blame(f"{name} is {value:g} after {IDLE_S:g} s without callers")
    verdict.expect(refused > 0, "nobody was refused: there was no overload")
    verdict.figures = {
        "callers": CALLERS,
        "places": RUNNING + QUEUED,
        "answered": answered,
        "refused": refused,
        "took, s": time.monotonic() - began_s,
    }
    return verdict
