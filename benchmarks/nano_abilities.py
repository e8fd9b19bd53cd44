"""What the embedded model can do, measured through the server: prints the card's table.

    python benchmarks/nano_abilities.py [--examples 100] [--abilities stories recall] [--model PATH]

Each ability's generator makes held-out requests, `penstock serve` answers them at temperature 0,
and the generator grades the answers. "Ended": the model stopped by itself. "No loop": no run of
eight words occurs three times.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

import httpx
from tqdm import tqdm

from benchmarks import results
from benchmarks.provenance import ROOT, Provenance
from benchmarks.server_process import penstock_server
from penstock.models.nano.abilities import (
    chat,
    copying,
    extraction,
    game24,
    recall,
    rewriting,
    storytelling,
    translation,
)
from penstock.models.nano.abilities.example import Example, Split

RESULTS: Final = ROOT / "benchmarks" / "results" / "nano_abilities.csv"
FIRST_QUESTION: Final = "Write a story about a cat"
CLIENTS: Final = 8
SPARE_TOKENS: Final = 100
"""What an answer may have beyond one token for each letter of the right one."""
LOOP_WORDS: Final = 8
RECALL_WORDS: Final = (100, 350, 700, 1050, 1300)
"""Lengths of the texts of `recall`; a word is about 1.3 tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server said to an example."""

    text: str
    ended: bool
    prompt_tokens: int


def _drawn(make: Callable[[Random, Split], Example], name: str) -> Callable[[int], list[Example]]:
    def draw(count: int) -> list[Example]:
        rng = Random(f"evaluate/{name}")
        return [make(rng, "held_out") for _ in range(count)]

    return draw


def _recall(count: int) -> list[Example]:
    rng = Random("evaluate/recall")
    return [
        recall.example(rng, "held_out", length_words=length)
        for _ in range(max(1, count // len(RECALL_WORDS)))
        for length in RECALL_WORDS
    ]


ABILITIES: Final[Mapping[str, Callable[[int], list[Example]]]] = {
    "stories": _drawn(storytelling.example, "stories"),
    "24: propose": _drawn(game24.propose, "propose"),
    "24: judge": _drawn(game24.judge, "judge"),
    "24: solve": lambda _: game24.held_out_puzzles(),
    "recall": _recall,
    "copy": _drawn(copying.example, "copy"),
    "extract": _drawn(extraction.example, "extract"),
    "extract, held to its schema": _drawn(extraction.example, "extract"),
    "extract, by a forced call": _drawn(extraction.example, "extract"),
    "translate": _drawn(translation.example, "translate"),
    "rewrite": _drawn(rewriting.example, "rewrite"),
    "chat": _drawn(chat.example, "chat"),
}


def _schema(example: Example) -> dict[str, Any]:
    """What the right answer's fields are, in their order."""
    values: dict[str, Any] = json.loads(example.answer)
    kinds = {
        key: "integer" if isinstance(value, int) else "string" for key, value in values.items()
    }
    return {
        "type": "object",
        "properties": {
            key: {"type": kind, **({"maxLength": 40} if kind == "string" else {})}
            for key, kind in kinds.items()
        },
        "required": list(kinds),
        "additionalProperties": False,
    }


def _held(example: Example) -> dict[str, Any]:
    # White space as the model has learned to write it.
    return {"structured_outputs": {"json": _schema(example), "whitespace_pattern": " ?"}}


def _called(example: Example) -> dict[str, Any]:
    function = {"name": "save", "parameters": _schema(example)}
    return {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "save"}},
    }


def _free(_: Example) -> dict[str, Any]:
    return {}


FORMS: Final[Mapping[str, Callable[[Example], dict[str, Any]]]] = {
    "extract, held to its schema": _held,
    "extract, by a forced call": _called,
}
"""Further fields of the requests of some abilities."""


def loops(text: str) -> bool:
    """Say whether some run of eight words occurs three times."""
    words = text.split()
    runs = [tuple(words[i : i + LOOP_WORDS]) for i in range(len(words) - LOOP_WORDS + 1)]
    return any(runs.count(run) >= 3 for run in set(runs))


def groups(name: str, example: Example, answer: Answer) -> list[str]:
    """Return the groups that an answer counts in: all, its tags, and for `recall` its length."""
    lengths: list[str] = []
    if name == "recall":
        low = answer.prompt_tokens // 500 * 500
        lengths.append(f"{low}-{low + 500} tokens")
        if answer.prompt_tokens <= 1500:
            lengths.append("up to 1500 tokens")
    return ["all", *lengths, *example.tags]


def table(
    name: str, examples: Sequence[Example], answers: Sequence[Answer]
) -> list[dict[str, str | float]]:
    """Return one line for each group and score: its mean (0 to 1) and how many it is over."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for example, answer in zip(examples, answers, strict=True):
        own = {"ended": float(answer.ended), "no loop": float(not loops(answer.text))}
        for group in groups(name, example, answer):
            for score, value in {**example.grade(answer.text), **own}.items():
                found[group, score].append(value)
    return [
        {
            "ability": name,
            "group": group,
            "score": score,
            "mean": sum(values) / len(values),
            "answers": len(values),
        }
        for (group, score), values in found.items()
    ]


async def ask(
    client: httpx.AsyncClient,
    messages: list[dict[str, str]],
    most_tokens: int = 700,
    fields: Mapping[str, Any] | None = None,
) -> Answer:
    """Return the server's answer to a conversation at temperature 0; of a call its arguments."""
    body: dict[str, Any] = {
        "messages": messages,
        "temperature": 0,
        "max_tokens": most_tokens,
        **(fields or {}),
    }
    response = await client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    said = response.json()
    choice = said["choices"][0]
    calls = choice["message"].get("tool_calls")
    return Answer(
        text=calls[0]["function"]["arguments"] if calls else choice["message"]["content"],
        ended=choice["finish_reason"] != "length",
        prompt_tokens=said["usage"]["prompt_tokens"],
    )


async def measure(
    url: str, names: Sequence[str], count: int
) -> tuple[list[dict[str, str | float]], list[str]]:
    """Return the lines of the table and, as text, one question and answer of each ability."""
    lines: list[dict[str, str | float]] = []
    samples: list[str] = []
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, timeout=600, trust_env=False)
        )
        began_s = time.perf_counter()
        first = await ask(client, [{"role": "user", "content": FIRST_QUESTION}])
        seconds = time.perf_counter() - began_s
        lines.append(
            {
                "ability": "first answer",
                "group": "all",
                "score": "seconds",
                "mean": seconds,
                "answers": 1,
            }
        )
        samples.append(f"> {FIRST_QUESTION}\n\n{first.text}")
        turn = asyncio.Semaphore(CLIENTS)
        for name in names:
            examples = ABILITIES[name](count)
            bar = stack.enter_context(tqdm(total=len(examples), desc=name))

            form = FORMS.get(name, _free)

            async def answer(example: Example, bar: "tqdm[Any]", form: Any) -> Answer:
                async with turn:
                    most_tokens = len(example.answer) + SPARE_TOKENS
                    found = await ask(client, example.messages, most_tokens, form(example))
                bar.update()
                return found

            answers = await asyncio.gather(*map(partial(answer, bar=bar, form=form), examples))
            lines += table(name, examples, answers)
            asked = examples[0].messages[-1]["content"]
            samples.append(f"{name}\n> {asked}\n\n{answers[0].text}")
    return lines, samples


def show(lines: Sequence[Mapping[str, str | float]]) -> None:
    """Print the lines as a table in Markdown."""
    print("| ability | group | score | mean | answers |\n| --- | --- | --- | --- | --- |")
    for line in lines:
        print(
            "| "
            + " | ".join(f"{v:.3f}" if isinstance(v, float) else f"{v}" for v in line.values())
            + " |"
        )


def main() -> None:
    """Serve, ask, grade, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100, help="of each ability")
    parser.add_argument("--abilities", nargs="+", choices=ABILITIES, default=list(ABILITIES))
    parser.add_argument("--model", help="a folder; without it the embedded weights are served")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--samples", action="store_true", help="print one answer of each ability")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        model = [arguments.model] if arguments.model else []
        server = stack.enter_context(penstock_server(model))
        lines, samples = asyncio.run(measure(server.url, arguments.abilities, arguments.examples))
    show(lines)
    if arguments.samples:
        print("\n" + "\n\n".join(samples))
    results.write(arguments.out, lines, Provenance.now("torch", "transformers"))


if __name__ == "__main__":
    main()
