"""What a search adds to the embedded model's Game of 24, against what it costs.

    python benchmarks/search.py [--puzzles 100] [--methods one-shot "best of 16" "tot b=5"]

Over HTTP, on the held-out puzzles: those of the paper's test set (ranks 901 to 1000). Tokens are
those of all branches, shared ones included, as `usage` counts them. A puzzle counts as solved when
the answer's last line is an expression that exact arithmetic confirms. "best of n" chooses among
whole answers with that same check, which no method of the paper could: its share is that of puzzles
of which any answer is right.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

import httpx
from matplotlib import rcParams
from matplotlib.figure import Figure
from tqdm.asyncio import tqdm

from benchmarks import results
from benchmarks.provenance import ROOT, Provenance
from benchmarks.server_process import penstock_server
from penstock.models.nano.abilities.arithmetic24 import Numbers, is_solution, puzzles, spell

RESULTS: Final = ROOT / "benchmarks" / "results" / "search.csv"
PLOT: Final = ROOT / "docs" / "decoding" / "search.svg"
AT_ONCE: Final = 4
TEMPERATURE: Final = 0.7
ANSWER: Final = "Answer:"


def _tot(**fields: Any) -> dict[str, Any]:
    return {"decoding": {"tot": {"task": "game24", "trace": "none", **fields}}}


def _best_of(n: int) -> dict[str, Any]:
    chosen = {"n": n, "rank": "evaluator", "evaluator": "game24", "trace": "none"}
    return {"decoding": {"best_of": chosen}, "max_tokens": 128}


METHODS: Final[dict[str, dict[str, Any]]] = {
    "one-shot": {"temperature": 0, "max_tokens": 128},
    "one-shot, sampled": {"max_tokens": 128},
    "chain": _tot(generate="sample", generate_samples=1, breadth=1, evaluate_samples=1),
    **{f"best of {n}": _best_of(n) for n in (4, 16, 64)},
    **{f"tot b={b}": _tot(breadth=b) for b in (1, 2, 5)},
    "tot b=5, logprob": _tot(breadth=5, evaluate="logprob"),
    "tot dfs": _tot(algorithm="dfs"),
}
"""Fields of the request, by the name of the method; in a chat whose user says "Solve it."."""


def solves(text: str, numbers: Numbers) -> bool:
    """Say whether the last line that begins with "Answer:" is a solution."""
    lines = [line for line in text.splitlines() if line.startswith(ANSWER)]
    return bool(lines) and is_solution(lines[-1].removeprefix(ANSWER).strip(), numbers)


async def ask(client: httpx.AsyncClient, numbers: Numbers, fields: Mapping[str, Any]) -> Any:
    """Return the server's answer, and how long it took under "seconds"."""
    body = {
        "messages": [{"role": "user", "content": f"Game of 24: {spell(numbers)}\nSolve it."}],
        "temperature": TEMPERATURE,
        "seed": 1,
        **fields,
    }
    started_s = time.perf_counter()
    answer = await client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    return answer.json() | {"seconds": time.perf_counter() - started_s}


async def measure(url: str, method: str, count: int) -> dict[str, Any]:
    """Return one line: the first `count` held-out puzzles, by one method."""
    turn = asyncio.Semaphore(AT_ONCE)
    chosen = puzzles("held_out")[:count]
    async with httpx.AsyncClient(base_url=url, timeout=900, trust_env=False) as client:

        async def one(numbers: Numbers) -> Any:
            async with turn:
                return await ask(client, numbers, METHODS[method])

        answers = await tqdm.gather(*map(one, chosen), desc=method)
    usages = [answer["usage"] for answer in answers]
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    return {
        "method": method,
        "puzzles": count,
        "solved": sum(solves(text, n) for text, n in zip(texts, chosen, strict=True)),
        "thoughts": statistics.fmean(u["penstock"].get("thoughts", 1) for u in usages),
        "prompt_tokens": statistics.fmean(u["prompt_tokens"] for u in usages),
        "shared_tokens": statistics.fmean(
            u["prompt_tokens_details"]["cached_tokens"] for u in usages
        ),
        "completion_tokens": statistics.fmean(u["completion_tokens"] for u in usages),
        "seconds_p50": statistics.median(answer["seconds"] for answer in answers),
    }


def draw(lines: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Plot the share of puzzles solved against thoughts and tokens."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, (name, columns) in zip(
        figure.subplots(1, 2, sharey=True),
        (
            ("thoughts, mean a puzzle", ("thoughts",)),
            ("tokens, mean a puzzle", ("prompt_tokens", "completion_tokens")),
        ),
        strict=True,
    ):
        for family in ("one-shot", "chain", "best of", "tot"):
            chosen = [line for line in lines if line["method"].startswith(family)]
            points = [
                (
                    sum(float(line[column]) for column in columns),
                    100 * int(line["solved"]) / int(line["puzzles"]),
                )
                for line in chosen
            ]
            axes.plot(*zip(*points, strict=True), "o", label=family)
            for line, point in zip(chosen, points, strict=True):
                label = line["method"].removeprefix(family).strip(" ,")
                axes.annotate(label, point, fontsize=7, xytext=(4, -8), textcoords="offset points")
        axes.set(xlabel=name, xscale="log")
        axes.grid(visible=True, alpha=0.3)
    figure.axes[0].set(ylabel="puzzles solved, %", ylim=(0, 103))
    figure.axes[0].legend(loc="lower right")
    rcParams["svg.hashsalt"] = "search"
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Serve, ask, print, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--puzzles", type=int, default=100)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--model", help="a folder; without it the embedded weights are served")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    arguments = parser.parse_args()
    model = [arguments.model] if arguments.model else []
    lines: list[dict[str, str]] = []
    with ExitStack() as stack:
        server = stack.enter_context(penstock_server([*model, "--kv-cache-memory", "0.1"]))
        for method in arguments.methods:
            line = asyncio.run(measure(server.url, method, arguments.puzzles))
            print(line, flush=True)
            lines = results.merge(
                arguments.out, [line], Provenance.now("torch", "transformers"), ["method"]
            )
    order = list(METHODS)
    draw(sorted(lines, key=lambda line: order.index(line["method"])), arguments.plot)


if __name__ == "__main__":
    main()
