"""How much a search adds to the embedded model's one-shot Game of 24: a breadth-first client.

    python benchmarks/nano_search.py [--puzzles 100] [--breadth 1 5] [--model PATH]

Over plain HTTP, at temperature 0: each kept state is asked for its next steps, each distinct step's
state is judged once, the best `breadth` go on (Yao et al. 2023, arXiv:2305.10601, with one vote
instead of three). A puzzle counts as solved when a kept path ends at 24 by legal steps. "Legal" is
the share of right ones among all lines that were proposed on the way.
"""

import argparse
import asyncio
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How a search ended, and how many lines the model proposed in it."""

    solved: bool
    lines: int
    legal: int


def left(line: str) -> Numbers | None:
    """Return the numbers that a proposed line leaves; None where it does not say whole ones."""
    words = line.partition("(left:")[2].removesuffix(")").split()
    if not words or not all(word.isdecimal() and len(word) < 6 for word in words):
        return None
    return tuple(sorted(map(int, words)))


async def search(client: httpx.AsyncClient, puzzle: Numbers, breadth: int) -> Search:
    """Look for 24 breadth first, keeping `breadth` states."""

    async def said(prompt: str, state: Numbers) -> str:
        question = prompt.format(numbers=spell(state))
        return (await ask(client, [{"role": "user", "content": question}])).text.strip()

    states = [puzzle]
    lines = legal = 0
    for _ in range(len(puzzle) - 1):
        proposals = await asyncio.gather(*(said(PROPOSE_PROMPT, state) for state in states))
        reached: dict[Numbers, None] = {}
        for state, text in zip(states, proposals, strict=True):
            for line in text.splitlines():
                lines += 1
                if is_legal(line, state):
                    legal += 1
                    after = left(line)
                    if after is not None:
                        reached[after] = None
        labels = await asyncio.gather(*(said(JUDGE_PROMPT, state) for state in reached))
        values = [VALUES.get(label, 0.0) for label in labels]
        ranked = sorted(zip(values, reached, strict=True), key=lambda found: -found[0])
        states = [state for _, state in ranked[:breadth]]
    return Search(solved=(24,) in states, lines=lines, legal=legal)


async def measure(url: str, count: int, breadth: int) -> list[Search]:
    """Return the searches over the first `count` held-out puzzles."""
    turn = asyncio.Semaphore(PUZZLES_AT_ONCE)
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:

        async def one(puzzle: Numbers) -> Search:
            async with turn:
                return await search(client, puzzle, breadth)

        chosen = puzzles("held_out")[:count]
        return await tqdm.gather(*map(one, chosen), desc=f"breadth {breadth}")


def main() -> None:
    """Serve, search, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--puzzles", type=int, default=100)
    parser.add_argument("--breadth", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--model", help="a folder; without it the embedded weights are served")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    lines: list[dict[str, float]] = []
    with ExitStack() as stack:
        model = [arguments.model] if arguments.model else []
        server = stack.enter_context(penstock_server(model))
        for breadth in arguments.breadth:
            found = asyncio.run(measure(server.url, arguments.puzzles, breadth))
            line = {
                "breadth": breadth,
                "puzzles": len(found),
                "solved": sum(each.solved for each in found),
                "proposed_lines": sum(each.lines for each in found),
                "legal_share": sum(e.legal for e in found) / max(1, sum(e.lines for e in found)),
            }
            lines.append(line)
            print(line)
    results.write(arguments.out, lines, Provenance.now("torch", "transformers"))


if __name__ == "__main__":
    main()
