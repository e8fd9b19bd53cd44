"""What searches cost their neighbours: 16 chats beside 16 trees, and beside 16 chats more.

    python benchmarks/beside.py [--seconds 20] [--rounds 3]

The time between two tokens of one chat, over all tokens of all 16 while their neighbours run; both
kinds of neighbours take turns on one server. Half of the trees are cancelled at random moments, and
whoever has ended starts again with another puzzle or story. At the end nothing may be held.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from pathlib import Path
from random import Random
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import results
from benchmarks.provenance import ROOT, Provenance
from benchmarks.server_process import exit_on_terminate, penstock_server
from penstock.models.nano.abilities.arithmetic24 import puzzles, spell

RESULTS: Final = ROOT / "benchmarks" / "results" / "beside.csv"
CHATS: Final = 16
CHAT_TOKENS: Final = 256
GAUGES: Final = ("num_requests_running", "num_requests_waiting", "kv_cache_pages_in_use")
LONGEST_LIFE_S: Final = 4.0
"""Of a tree that is cancelled."""


async def chat(client: httpx.AsyncClient, number: int, gaps_s: list[float] | None) -> None:
    """Chat without end; the time between tokens goes to `gaps_s`."""
    rng = Random(f"chat {number}")
    while True:
        body = {
            "messages": [{"role": "user", "content": "Write a story about a dragon and a key."}],
            "max_tokens": CHAT_TOKENS,
            "ignore_eos": True,
            "seed": rng.randrange(2**32),
            "stream": True,
        }
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            last_s: float | None = None
            async for line in answer.aiter_lines():
                if '"content":"' not in line or '"content":""' in line:
                    continue
                now_s = time.perf_counter()
                if gaps_s is not None and last_s is not None:
                    gaps_s.append(now_s - last_s)
                last_s = now_s


async def tree(client: httpx.AsyncClient, number: int, ended: list[bool]) -> None:
    """Search without end; trees of odd number are cancelled at random moments."""
    rng = Random(f"tree {number}")
    while True:
        body: dict[str, Any] = {
            "prompt": spell(rng.choice(puzzles("held_out"))),
            "seed": rng.randrange(2**32),
            "temperature": 0.7,
            "decoding": {"tot": {"task": "game24"}},
        }
        life_s = rng.uniform(0, LONGEST_LIFE_S) if number % 2 else None
        try:
            async with asyncio.timeout(life_s):
                answer = await client.post("/v1/completions", json=body)
                answer.raise_for_status()
                ended.append(True)
        except TimeoutError:
            ended.append(False)


async def measure(url: str, neighbours: str, seconds: float) -> dict[str, Any]:
    """One line: the chats beside 16 of those neighbours."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=url, timeout=600, limits=limits, trust_env=False
    ) as client:
        gaps_s: list[float] = []
        ended: list[bool] = []
        if neighbours == "trees":
            others = [tree(client, number, ended) for number in range(CHATS)]
        else:
            others = [chat(client, CHATS + number, None) for number in range(CHATS)]
        own = [chat(client, number, gaps_s) for number in range(CHATS)]
        tasks = [asyncio.create_task(one) for one in (*others, *own)]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(outcome, asyncio.CancelledError):
                raise RuntimeError("a neighbour ended by itself") from outcome
        await idle(client)
    gaps_s.sort()
    return {
        "neighbours": neighbours,
        "gaps": len(gaps_s),
        "p50_ms": 1e3 * statistics.median(gaps_s),
        "p99_ms": 1e3 * gaps_s[int(0.99 * len(gaps_s))],
        "trees_answered": sum(ended),
        "trees_cancelled": len(ended) - sum(ended),
    }


async def idle(client: httpx.AsyncClient, deadline_s: float = 10.0) -> None:
    """Wait until nothing runs and no page is held."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline_s):
            while await held(client):
                await asyncio.sleep(0.05)
    still = await held(client)
    if still:
        raise RuntimeError(f"left behind: {still}")


async def held(client: httpx.AsyncClient) -> dict[str, float]:
    """What the server's gauges say is not 0."""
    text = (await client.get("/metrics")).text
    names = [f"penstock_{name}" for name in GAUGES]
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in names and sample.value
    }


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="a folder; without it the embedded weights are served")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    exit_on_terminate()
    lines: list[dict[str, Any]] = []
    with penstock_server([*([options.model] if options.model else [])]) as server:
        asyncio.run(measure(server.url, "chats", 3))
        for number in range(options.rounds):
            pair = [
                {"round": number, **asyncio.run(measure(server.url, kind, options.seconds))}
                for kind in ("chats", "trees")
            ]
            for line in pair:
                line["p99_times_chats"] = line["p99_ms"] / pair[0]["p99_ms"]
                print(line, flush=True)
            lines += pair
    results.write(options.out, lines, Provenance.now("torch", "transformers"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
