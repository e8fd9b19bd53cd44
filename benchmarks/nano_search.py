"""How much a search adds to the embedded model's one-shot Game of 24: a breadth-first client.

    python benchmarks/nano_search.py [--puzzles 100] [--breadth 1 5] [--model PATH]

Over plain HTTP, at temperature 0: each kept state is asked for its next steps, each distinct step's
state is judged once, the best `breadth` go on (Yao et al. 2023, arXiv:2305.10601, with one vote
instead of three). A puzzle counts as solved when a kept path ends at 24 by legal steps.
"""

import argparse
import asyncio
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Final

import httpx
from tqdm.asyncio import tqdm

from benchmarks import results
from benchmarks.nano_abilities import ask
from benchmarks.provenance import ROOT, Provenance
from benchmarks.server_process import penstock_server
from penstock.models.nano.abilities.arithmetic24 import Numbers, is_legal, puzzles, spell
from penstock.models.nano.abilities.game24 import JUDGE_PROMPT, PROPOSE_PROMPT

RESULTS: Final = ROOT / "benchmarks" / "results" / "nano_search.csv"
PUZZLES_AT_ONCE: Final = 4
VALUES: Final = {"impossible": 0.001, "likely": 1.0, "sure": 20.0}
"""What a judgement counts: the paper's values."""


def left(line: str) -> Numbers | None:
    """Return the numbers that a proposed line leaves; None where it does not say whole ones."""
    words = line.partition("(left:")[2].removesuffix(")").split()
    if not words or not all(word.isdecimal() and len(word) < 6 for word in words):
        return None
    return tuple(sorted(map(int, words)))


async def solved(client: httpx.AsyncClient, puzzle: Numbers, breadth: int) -> bool:
    """Say whether a breadth-first search that keeps `breadth` states finds 24."""

    async def said(prompt: str, state: Numbers) -> str:
        question = prompt.format(numbers=spell(state))
        return (await ask(client, [{"role": "user", "content": question}])).text.strip()

    states = [puzzle]
    for _ in range(len(puzzle) - 1):
        proposals = await asyncio.gather(*(said(PROPOSE_PROMPT, state) for state in states))
        reached: dict[Numbers, None] = {}
        for state, text in zip(states, proposals, strict=True):
            for line in text.splitlines():
                after = left(line)
                if after is not None and is_legal(line, state):
                    reached[after] = None
        labels = await asyncio.gather(*(said(JUDGE_PROMPT, state) for state in reached))
        values = [VALUES.get(label, 0.0) for label in labels]
        ranked = sorted(zip(values, reached, strict=True), key=lambda found: -found[0])
        states = [state for _, state in ranked[:breadth]]
    return any(Fraction(state[0]) == 24 for state in states)


async def measure(url: str, count: int, breadth: int) -> int:
    """Return how many of the first `count` held-out puzzles a search solves."""
    turn = asyncio.Semaphore(PUZZLES_AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:

        async def one(puzzle: Numbers) -> bool:
            async with turn:
                return await solved(client, puzzle, breadth)

        chosen = puzzles("held_out")[:count]
        return sum(await tqdm.gather(*map(one, chosen), desc=f"breadth {breadth}"))


def main() -> None:
    """Serve, search, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--puzzles", type=int, default=100)
    parser.add_argument("--breadth", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--model", help="a folder; without it the embedded weights are served")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    lines: list[dict[str, int]] = []
    with ExitStack() as stack:
        model = [arguments.model] if arguments.model else []
        server = stack.enter_context(penstock_server(model))
        for breadth in arguments.breadth:
            found = asyncio.run(measure(server.url, arguments.puzzles, breadth))
            lines.append({"breadth": breadth, "puzzles": arguments.puzzles, "solved": found})
            print(f"breadth {breadth}: {found} of {arguments.puzzles}")
    results.write(arguments.out, lines, Provenance.now("torch", "transformers"))


if __name__ == "__main__":
    main()
