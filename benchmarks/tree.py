"""A tree of 39 generations (3 plans, 3 ways to execute each, 3 reflections on each): one request or
a client's loop, with shared prefixes or without.

    python benchmarks/tree.py [--rounds 5] [--prompt-tokens 900] [--thought-tokens 48]

One request is `tot` with nothing dropped; its values come from a service in this process that says
0, so that every arm has the same 39 generations and no others. The arms take turns, on two servers
that run all the time, with and without `--prefix-cache`. A client's loop asks for one generation
after the other; the concurrent one asks for all of a level at once, and without sharing reads every
prompt for itself. Every round has a prompt of its own.
"""

import argparse
import asyncio
import json
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import results
from benchmarks.provenance import ROOT, Provenance
from benchmarks.server_process import exit_on_terminate, penstock_server

RESULTS: Final = ROOT / "benchmarks" / "results" / "tree.csv"
BRANCHES: Final = 3
DEPTH: Final = 3
GENERATIONS: Final = sum(BRANCHES**level for level in range(1, DEPTH + 1))
VOCABULARY: Final = range(300, 1800)
"""Ordinary tokens of the embedded model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One arm's tree: how long it took, and the prompt tokens that were computed for it."""

    seconds: float
    computed: float
    generated: int


class _Indifferent(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Score all candidates 0."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        data = json.dumps({"scores": [0] * len(body["candidates"])}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its name there
        """Say nothing."""


@contextmanager
def indifferent() -> Generator[str]:
    """An evaluator's address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Indifferent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def body(prompt: list[int], options: argparse.Namespace, **fields: Any) -> dict[str, Any]:
    """A request whose answers have exactly as many tokens as a thought."""
    return {
        "prompt": prompt,
        "max_tokens": options.thought_tokens,
        "ignore_eos": True,
        "return_token_ids": True,
        "temperature": 0.8,
        "seed": 1,
        **fields,
    }


async def one_request(
    client: httpx.AsyncClient, prompt: list[int], options: argparse.Namespace
) -> int:
    """The tree as a search; returns the tokens generated."""
    tot = {
        "generate": "sample",
        "generate_samples": BRANCHES,
        "breadth": BRANCHES**DEPTH,
        "depth": DEPTH,
        "evaluate": "external",
        "evaluator": "indifferent",
        "trace": "none",
    }
    answer = await client.post("/v1/completions", json=body(prompt, options, decoding={"tot": tot}))
    answer.raise_for_status()
    usage = answer.json()["usage"]
    assert usage["penstock"]["thoughts"] == GENERATIONS
    return usage["completion_tokens"]


async def _generation(
    client: httpx.AsyncClient, prompt: list[int], seed: int, options: argparse.Namespace
) -> list[int]:
    answer = await client.post("/v1/completions", json=body(prompt, options, seed=seed, stop="\n"))
    answer.raise_for_status()
    return answer.json()["choices"][0]["token_ids"]


async def a_loop(client: httpx.AsyncClient, prompt: list[int], options: argparse.Namespace) -> int:
    """The tree by a client, one generation after the other."""
    level, generated = [prompt], 0
    for _ in range(DEPTH):
        thoughts = [
            [*state, *await _generation(client, state, seed, options)]
            for state in level
            for seed in range(BRANCHES)
        ]
        generated += sum(map(len, thoughts)) - BRANCHES * sum(map(len, level))
        level = thoughts
    return generated


async def a_concurrent_loop(
    client: httpx.AsyncClient, prompt: list[int], options: argparse.Namespace
) -> int:
    """The tree by a client, all generations of a level at once."""
    level, generated = [prompt], 0

    async def thought(state: list[int], seed: int) -> list[int]:
        return [*state, *await _generation(client, state, seed, options)]

    for _ in range(DEPTH):
        thoughts = await asyncio.gather(
            *(thought(state, seed) for state in level for seed in range(BRANCHES))
        )
        generated += sum(map(len, thoughts)) - BRANCHES * sum(map(len, level))
        level = list(thoughts)
    return generated


Arm = Callable[[httpx.AsyncClient, list[int], argparse.Namespace], Awaitable[int]]
SHARING: Final = "one request"
ARMS: Final[dict[str, tuple[Arm, bool]]] = {
    SHARING: (one_request, True),
    "all of a level at once, no sharing": (a_concurrent_loop, False),
    "all of a level at once, shared prompts": (a_concurrent_loop, True),
    "client's loop, shared prompts": (a_loop, True),
}
"""How, and whether the server shares prefixes."""


async def grow(arm: str, url: str, prompt: list[int], options: argparse.Namespace) -> Tree:
    """One tree."""
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        before = await _computed(client)
        started_s = time.perf_counter()
        generated = await ARMS[arm][0](client, prompt, options)
        seconds = time.perf_counter() - started_s
        computed = await _computed(client) - before
    return Tree(seconds=seconds, computed=computed, generated=generated)


async def _computed(client: httpx.AsyncClient) -> float:
    text = (await client.get("/metrics")).text
    return next(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "penstock_computed_prompt_tokens_total"
    )


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=900)
    parser.add_argument("--thought-tokens", type=int, default=48)
    parser.add_argument("--model", help="a folder; without it the embedded weights are served")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    exit_on_terminate()
    trees: dict[str, list[Tree]] = {arm: [] for arm in ARMS}
    with ExitStack() as stack:
        evaluators = {"indifferent": {"url": stack.enter_context(indifferent())}}
        common = [*([options.model] if options.model else []), "--kv-cache-memory", "0.1"]
        common += ["--evaluators", json.dumps(evaluators), "--search-sequences", "32"]
        urls = {
            shares: stack.enter_context(penstock_server([*common, flag])).url
            for shares, flag in ((True, "--prefix-cache"), (False, "--no-prefix-cache"))
        }
        for number in range(-1, options.rounds):
            rng = Random(f"tree {number}")
            prompt = rng.choices(VOCABULARY, k=options.prompt_tokens)
            for arm, (_, shares) in ARMS.items():
                # A prompt of its own: no arm finds what another left in the cache.
                own = rng.choices(VOCABULARY, k=32) + prompt[32:]
                tree = asyncio.run(grow(arm, urls[shares], own, options))
                print(f"{number} {arm}: {tree}", flush=True)
                if number >= 0:  # the first one only warms up
                    trees[arm].append(tree)
    lines: list[dict[str, Any]] = []
    for arm, found in trees.items():
        ratios = [
            one.seconds / ours.seconds for one, ours in zip(found, trees[SHARING], strict=True)
        ]
        lines.append(
            {
                "arm": arm,
                "generations": GENERATIONS,
                "prompt_tokens": options.prompt_tokens,
                "thought_tokens": options.thought_tokens,
                "rounds": len(found),
                "generated_tokens": statistics.median(tree.generated for tree in found),
                "computed_prompt_tokens": statistics.median(tree.computed for tree in found),
                "seconds_p50": statistics.median(tree.seconds for tree in found),
                "times_one_request_p50": statistics.median(ratios),
                "times_one_request_low": min(ratios),
                "times_one_request_high": max(ratios),
            }
        )
        print(lines[-1])
    results.write(options.out, lines, Provenance.now("torch", "transformers"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
