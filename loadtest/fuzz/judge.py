"""A server under requests that are nearly right: each gets an answer of the contract.

No answer is a 5xx, every refusal has the contract's shape, a calm caller gets the same text all
the while, and in the end nothing runs, waits or holds a page.
"""

import asyncio
import random
import time
from typing import Any
from urllib.parse import urlsplit

import orjson

from loadtest.fuzz.mutations import fuzzed
from loadtest.leaks import wait_until_idle
from loadtest.soak.client import Answer, exchange, exchange_bytes
from loadtest.soak.verdict import Verdict
from penstock.bench.sse import DONE
from penstock.bench.wire import ProtocolError

CALLERS = 4
CALM: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
CALM_EVERY = 25
IDLE_S = 10.0
ANSWER_S = 20.0
"""Whatever was sent, the server has answered or hung up by then."""

REFUSALS = frozenset({400, 401, 403, 404, 405, 408, 411, 413, 414, 415, 417, 421, 429, 431, 501})


async def fuzz_http(url: str, *, duration_s: float, seed: int, first: int = 0) -> Verdict:
    """Send requests number `first` and following for `duration_s`."""
    verdict = Verdict(part="http")
    calm = (await _calm(url)).text
    host = urlsplit(url).netloc
    until_s = time.monotonic() + duration_s
    statuses: dict[int, int] = {}
    number = first

    async def caller() -> None:
        nonlocal number
        while time.monotonic() < until_s:
            number += 1
            asked = f"request {number} of seed {seed}"
            if number % CALM_EVERY == 0:
                answer = await _calm(url)
                verdict.expect(
                    answer.text == calm,
                    f"a calm caller got another text at {asked}: {answer.status} {answer.text!r}",
                )
                continue
            request = fuzzed(random.Random(f"{seed}/{number}"), host)
            try:
                answer = await asyncio.wait_for(exchange_bytes(url, request), ANSWER_S)
            except TimeoutError:
                # More was announced than was sent: waiting for it is right.
                announced = b"99999999999" in request or b"transfer-encoding" in request
                verdict.expect(announced, f"no answer to {asked}: {request[:500]!r}")
                continue
            except (OSError, ProtocolError) as error:
                verdict.blame(f"{asked}: {error!r}: {request[:500]!r}")
                continue
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
            fault = judge(answer, head_only=request.startswith(b"HEAD"))
            if fault is not None:
                verdict.blame(f"{asked}: {fault}: {request[:500]!r}")

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    leaks = await asyncio.to_thread(wait_until_idle, url, deadline_s=IDLE_S)
    for name, value in leaks.items():
        verdict.blame(f"{name} is {value:g} after {IDLE_S:g} s without callers")
    verdict.figures["requests"] = number - first
    for status, count in sorted(statuses.items()):
        verdict.figures[f"status {status}"] = count
    return verdict


async def _calm(url: str) -> Answer:
    """The answer to a calm caller, who comes again where the server is full and says when."""
    until_s = time.monotonic() + ANSWER_S
    while True:
        answer = await exchange(url, "/v1/completions", CALM)
        if answer.status != 429 or time.monotonic() > until_s:
            return answer
        await asyncio.sleep(float(answer.headers["retry-after"]))


def judge(answer: Answer, *, head_only: bool = False) -> str | None:
    """What is wrong with an answer; None: nothing."""
    if answer.status in REFUSALS:
        if head_only:
            return None
        try:
            error = answer.json["error"]
            message = error["message"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return f"a {answer.status} that is no error of the contract: {answer.body[:200]!r}"
        complete = isinstance(message, str) and message and {"type", "param", "code"} <= set(error)
        return None if complete else f"an incomplete error: {answer.body[:200]!r}"
    if answer.status not in (200, 204):
        return f"status {answer.status}: {answer.body[:300]!r}"
    if not answer.complete:
        return "an answer that was cut"
    if answer.events:
        return None if answer.events[-1] == DONE else f"a stream ended with {answer.events[-1]!r}"
    return None
