"""How many long requests one pool serves at once, and how fast: h2o beside the full cache.

    python benchmarks/kv_cache_server.py [--model llama-4.6m] [--pool-requests 4] [--rounds 3]

Every server has the same pool, which holds `--pool-requests` requests whole. At once: the most
requests, sent together, that all run together, none preempted. Throughput: output tokens/s of as
many requests as run at once under h2o, and of as many with full caches, most of which wait; the two
take turns, each on a server of its own, round after round.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

# At the end: an installed package must win over a folder of that name.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import results
from benchmarks.kv_cache import FULL, Line, line, show
from benchmarks.models import SIZES, model_folder
from benchmarks.provenance import Provenance
from benchmarks.server_process import ServerProcess, exit_on_terminate, penstock_server

OUTPUT: Final = Path(__file__).resolve().parent / "results" / "kv_cache_server.csv"
POLICIES: Final[dict[str, Any]] = {FULL: "full", "h2o, 20%": {"h2o": {"heavy": 0.1, "recent": 0.1}}}
_POLL_S: Final = 0.02
_TIMEOUT_S: Final = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Requests sent together: how many ran at once, and the most pages in use."""

    requests: int
    at_once: int
    preempted: int
    most_pages: int
    tokens_per_s: float


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    exit_on_terminate()
    most: dict[str, int] = {}
    guess = options.pool_requests
    for policy in POLICIES:
        with _server(options) as server:
            most[policy] = guess = most_at_once(
                lambda count, url=server.url, of=policy: together(url, of, count, options),
                guess,
            )
        guess = round(5.5 * guess)
    speeds: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    for number in range(options.rounds):
        for policy in POLICIES:
            with _server(options) as server:
                together(server.url, policy, 1, options)
                run = together(server.url, policy, max(most.values()), options, seed=number)
            speeds[policy].append(run.tokens_per_s)
    lines = list(table(most, speeds, options))
    show(lines)
    results.write(options.output, lines, Provenance.now("torch", "transformers"))
    return 0


def most_at_once(attempt: Callable[[int], Run], guess: int) -> int:
    """The largest number of requests that run together, from a guess up or down."""

    def holds(count: int) -> bool:
        run = attempt(count)
        return run.at_once == count and run.preempted == 0

    if holds(guess):
        while holds(guess + 1):
            guess += 1
        return guess
    while guess > 1 and not holds(guess - 1):
        guess -= 1
    return guess - 1


def table(
    most: dict[str, int], speeds: dict[str, list[float]], options: argparse.Namespace
) -> Iterator[Line]:
    """Two lines a policy."""
    where = options.prompt_tokens, options.output_tokens
    for policy, count in most.items():
        figure = f"at once in a pool of {options.pool_requests} whole requests"
        yield line(options.model, policy, *where, figure, count, [count / most[FULL]])
    for policy, values in speeds.items():
        ratios = [value / full for value, full in zip(values, speeds[FULL], strict=True)]
        figure = f"output tokens/s of {max(most.values())} requests"
        yield line(options.model, policy, *where, figure, statistics.median(values), ratios)


def together(
    url: str, policy: str, count: int, options: argparse.Namespace, *, seed: int = 0
) -> Run:
    """Send that many requests at once and wait for all."""
    run = asyncio.run(_together(url, policy, count, options, Random(f"{policy} {count} {seed}")))
    print(f"{policy}: {run}", flush=True)
    return run


async def _together(
    url: str, policy: str, count: int, options: argparse.Namespace, rng: Random
) -> Run:
    vocabulary = SIZES[options.model].vocabulary
    bodies = [
        {
            "model": options.model,
            "prompt": [rng.randrange(3, vocabulary) for _ in range(options.prompt_tokens)],
            "max_tokens": options.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "kv_cache": POLICIES[policy],
        }
        for _ in range(count)
    ]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=url, trust_env=False, timeout=_TIMEOUT_S, limits=limits
    ) as client:
        before = await _gauges(client)
        begun_s = time.perf_counter()
        answers = asyncio.gather(*(client.post("/v1/completions", json=b) for b in bodies))
        seen: list[dict[str, float]] = []
        while not answers.done():
            seen.append(await _gauges(client))
            await asyncio.sleep(_POLL_S)
        elapsed_s = time.perf_counter() - begun_s
        after = await _gauges(client)
        tokens = 0
        for answer in await answers:
            answer.raise_for_status()
            tokens += answer.json()["usage"]["completion_tokens"]
    assert tokens == count * options.output_tokens, "answers of full length"
    preemptions = "penstock_num_preemptions_total"
    return Run(
        requests=count,
        at_once=int(max(one["penstock_num_requests_running"] for one in seen)),
        preempted=int(after[preemptions] - before[preemptions]),
        most_pages=int(max(one["penstock_kv_cache_pages_in_use"] for one in seen)),
        tokens_per_s=tokens / elapsed_s,
    )


async def _gauges(client: httpx.AsyncClient) -> dict[str, float]:
    """Metrics without labels, by name."""
    text = (await client.get("/metrics")).text
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


def _server(options: argparse.Namespace) -> ServerProcess:
    tokens = options.pool_requests * (options.prompt_tokens + options.output_tokens)
    memory = tokens * SIZES[options.model].kv_bytes_per_token
    return penstock_server(
        [
            *(str(model_folder(options.model)), "--served-model-name", options.model),
            *("--dtype", "float32", "--kv-cache-memory", str(memory)),
        ]
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--model", default="llama-4.6m", choices=list(SIZES))
    parser.add_argument("--pool-requests", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--output-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
