"""Nobody learns from the clock what another key has asked: its prefix is never faster."""

import random
import statistics
import time

from benchmarks.server_process import ServerProcess
from loadtest.soak.client import exchange
from loadtest.soak.verdict import Verdict
from penstock.bench.prompts import synthetic_text

KEYS = ("first", "second")
PROMPT_WORDS = 1200
LEAST_RATIO = 0.8
"""Of the time of a prompt that nobody has asked before; noise alone stays above."""

MOST_WARM_RATIO = 0.6
"""One's own prefix is faster than this, or the comparison could not see a shared one."""


async def tenants(server: ServerProcess, *, duration_s: float, seed: int) -> Verdict:
    """First one key asks, then the other the same, then the first again."""
    verdict = Verdict(part="tenants")
    source = random.Random(seed)
    times: dict[str, list[float]] = {"cold": [], "another's": [], "own": []}
    began_s = time.monotonic()
    while time.monotonic() - began_s < duration_s or len(times["own"]) < 5:
        prompt = synthetic_text(PROMPT_WORDS, source)
        for name, key in (("cold", KEYS[0]), ("another's", KEYS[1]), ("own", KEYS[0])):
            sent_s = time.perf_counter()
            answer = await exchange(
                server.url, "/v1/completions", {"prompt": prompt, "max_tokens": 1}, key=key
            )
            times[name].append(time.perf_counter() - sent_s)
            if answer.status != 200:
                verdict.blame(f"status {answer.status}: {answer.body[:200]}")
                return verdict
            cached = answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
            verdict.expect((cached > 0) == (name == "own"), f"{cached} cached tokens, {name}")
    medians = {name: statistics.median(each) for name, each in times.items()}
    ratio = medians["another's"] / medians["cold"]
    verdict.expect(ratio > LEAST_RATIO, f"another key's prefix takes {ratio:.2f} of a cold one")
    warm = medians["own"] / medians["cold"]
    verdict.expect(warm < MOST_WARM_RATIO, f"one's own prefix takes {warm:.2f} of a cold one")
    verdict.figures = {f"{name}, ms": value * 1e3 for name, value in medians.items()}
    return verdict
