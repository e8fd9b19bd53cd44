"""Decoding methods beside plain decoding: tokens a pass, and wall-clock, by task.

    python benchmarks/decoding.py [--batch 1 4 16] [--tasks copy extract] [--rounds 5]
    python benchmarks/decoding.py --model FOLDER [--tasks prose code summary edit quote]

Without --model the embedded one, with its own tasks; another gets those of `real_tasks.py`, and its
lines are written to `decoding_FOLDER.csv`.

Within a round every method answers the same prompts, plain decoding among them, one method after
the other, so that a drift of the machine hits all; every round begins with another method. A ratio
is plain decoding's time over the method's in that round; the table has the median of the rounds.
Prefix caching is off. Texts are compared: a drafter that changed one would be wrong, not fast.

Drafters that remember earlier answers remember their own alone, those of the warm-up (8 at once)
and of earlier rounds; each round has new prompts.

What is measured replaces the lines of the same batch, task, temperature and method in the results;
other lines stay, so that a long run can be made in pieces.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

from matplotlib import rcParams
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import real_tasks, results
from benchmarks.provenance import ROOT, Provenance
from penstock import SamplingParams
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.requests.input import Input
from penstock.models.nano.abilities import (
    copying,
    extraction,
    game24,
    rewriting,
    storytelling,
    translation,
)
from penstock.models.nano.abilities.example import Example, Split
from penstock.registry import Spec

RESULTS: Final = ROOT / "benchmarks" / "results"
PLOT: Final = ROOT / "docs" / "decoding" / "speed.svg"
Task = Callable[[Random], list[dict[str, str]]]
"""Makes a conversation to be answered."""


def _held_out(example: Callable[[Random, Split], Example]) -> Task:
    return lambda rng: example(rng, "held_out").messages


NANO_TASKS: Final[Mapping[str, Task]] = {
    "stories": _held_out(storytelling.example),
    "translation": _held_out(translation.example),
    "copy": _held_out(copying.example),
    "extract": _held_out(extraction.example),
    "rewrite": _held_out(rewriting.example),
    "24": _held_out(game24.propose),
}
TASKS: Final[Mapping[str, Task]] = {**NANO_TASKS, **real_tasks.TASKS}
METHODS: Final[Mapping[str, Spec]] = {
    "plain": None,
    "jacobi": "jacobi",
    "jacobi, fixed 16": {"jacobi": {"adaptive": False}},
    "ngram": "ngram",
    "lookahead": "lookahead",
    "cfg": {"cfg": {"scale": 1.5}},
    "cfg + jacobi": {"cfg": {"scale": 1.5}, "jacobi": {}},
}
WITHOUT_DRAFTER: Final = ("plain", "cfg")
_KEY: Final = ("batch", "task", "temperature", "method")
_WARM_UP_BATCH: Final = 8
_LONGEST_PROMPT: Final = 1000
BASE: Final = {"cfg + jacobi": "cfg"}
"""Whose texts a method must repeat, where that is not plain decoding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One method's answers to one task's prompts in one round."""

    task: str
    batch: int
    temperature: float
    method: str
    round: int
    seconds: float
    tokens: int
    steps: int
    drafted: int
    texts: tuple[tuple[int, ...], ...]


def main() -> int:
    """Measure, print, write, draw; 1 if a drafter changed a text."""
    options = _parse()
    cells: list[Cell] = []
    settings = [
        (batch, task, temperature)
        for batch in options.batch
        for task in options.tasks
        for temperature in options.temperatures
    ]
    provenance = Provenance.now("torch", "transformers")
    total = len(settings) * options.rounds * len(options.methods)
    with tqdm(total=total, unit="run", file=sys.stderr) as bar:
        for batch, task, temperature in settings:
            built = _build(options.model, batch)
            count = max(options.least_prompts, options.waves * batch)
            # The engine learns what rows cost, and drafters what is said.
            warm_up = _prompts(built, task, options.warm_up, 0)
            for method in options.methods:
                if method not in WITHOUT_DRAFTER:
                    _run(built, warm_up, method, temperature, _WARM_UP_BATCH)
                _run(built, warm_up[: max(2, batch)], method, temperature, batch)
            for number in range(1, options.rounds + 1):
                prompts = _prompts(built, task, count, number)
                first = number % len(options.methods)
                for method in options.methods[first:] + options.methods[:first]:
                    start_s = time.perf_counter()
                    usages, texts = _run(built, prompts, method, temperature, batch)
                    cells.append(
                        Cell(
                            task=task,
                            batch=batch,
                            temperature=temperature,
                            method=method,
                            round=number,
                            seconds=time.perf_counter() - start_s,
                            tokens=sum(map(len, texts)),
                            steps=sum(usage[0] for usage in usages),
                            drafted=sum(usage[1] for usage in usages),
                            texts=texts,
                        )
                    )
                    bar.update()
            lines = _lines([c for c in cells if _place(c) == (batch, task, temperature)])
            for line in lines:
                tqdm.write("  ".join(f"{value}" for value in line.values()))
            every = results.merge(options.output, lines, provenance, _KEY)
            if options.plot:
                _draw(every, options.plot)
    changed = _changed(cells)
    for text in changed:
        print(f"changed: {text}")
    return 1 if changed else 0


def _place(cell: Cell) -> tuple[int, str, float]:
    return cell.batch, cell.task, cell.temperature


def _build(model: str | None, batch: int) -> Built:
    # Guidance takes two places for each sequence.
    places = 2 * max(batch, _WARM_UP_BATCH)
    config = EngineConfig(model=model, max_running=places, prefix_cache=False)
    return build_engine(config, time.perf_counter)


def _prompts(built: Built, task: str, count: int, number: int) -> list[list[int]]:
    rng = Random(f"decoding {task} {number}")
    tokenizer = built.input_processor.tokenizer
    found: list[list[int]] = []
    while len(found) < count:
        chat = tokenizer.render_chat(TASKS[task](rng))
        ids = tokenizer.encode_chat(chat)
        if len(ids) <= _LONGEST_PROMPT:
            found.append(list(ids))
    return found


def _run(
    built: Built, prompts: Sequence[list[int]], method: str, temperature: float, batch: int
) -> tuple[list[tuple[int, int]], tuple[tuple[int, ...], ...]]:
    """Answer all prompts, `batch` at a time; (steps, draft tokens) and tokens of each."""
    engine = built.engine
    params = SamplingParams(max_tokens=256, temperature=temperature, seed=1)
    waiting = [
        built.input_processor.prepare(
            Input(
                request_id=str(i),
                prompt=prompt,
                params=params,
                decoding=METHODS[method],
                cache_salt=method,
            )
        )
        for i, prompt in enumerate(prompts)
    ]
    steps, drafted = [0] * len(prompts), [0] * len(prompts)
    texts: list[list[int]] = [[] for _ in prompts]
    live = 0
    waiting.reverse()
    while waiting or live:
        while waiting and live < batch:
            engine.add(waiting.pop())
            live += 1
        for output in engine.step():
            number = int(output.request_id)
            texts[number] += output.token_ids
            steps[number] += 1
            drafted[number] += 0 if output.counters is None else output.counters.drafted
            live -= output.finish_reason is not None
    return list(zip(steps, drafted, strict=True)), tuple(map(tuple, texts))


def _changed(cells: Sequence[Cell]) -> list[str]:
    """Places where a drafter's text is not that of the method it drafts for."""
    of = {(_place(c), c.method, c.round): c.texts for c in cells}
    found: set[str] = set()
    for (place, method, number), texts in of.items():
        base = of.get(
            (place, BASE.get(method, method if method in WITHOUT_DRAFTER else "plain"), number)
        )
        if base is not None and texts != base:
            found.add(f"{method} at {place}")
    return sorted(found)


def _lines(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """One line for each task, batch, temperature and method."""
    plain = {(_place(c), c.round): c.seconds for c in cells if c.method == "plain"}
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((*_place(cell), cell.method), []).append(cell)
    lines: list[dict[str, Any]] = []
    for (batch, task, temperature, method), members in groups.items():
        # Per token, because guided answers differ in length.
        tokens = {
            c.round: c.tokens
            for c in cells
            if _place(c) == (batch, task, temperature) and c.method == "plain"
        }
        ratios = [
            (plain[_place(c), c.round] / tokens[c.round]) / (c.seconds / c.tokens) for c in members
        ]
        lines.append(
            {
                "batch": batch,
                "task": task,
                "temperature": temperature,
                "method": method,
                "tokens_per_pass": round(_sum(members, "tokens") / _sum(members, "steps"), 3),
                "drafted_per_pass": round(_sum(members, "drafted") / _sum(members, "steps"), 2),
                "speed_ratio": round(statistics.median(ratios), 3),
                "ratio_low": round(min(ratios), 3),
                "ratio_high": round(max(ratios), 3),
                "ms_per_token": round(
                    statistics.median(1000 * c.seconds / c.tokens for c in members), 3
                ),
            }
        )
    return lines


def _sum(cells: Sequence[Cell], name: str) -> int:
    return sum(getattr(cell, name) for cell in cells)


def _draw(lines: Sequence[Mapping[str, str]], out: Path) -> None:
    """Speed ratios by task, one panel for each batch size; greedy."""
    lines = [line for line in lines if float(line["temperature"]) == 0]
    batches = sorted({int(line["batch"]) for line in lines})
    tasks = [task for task in TASKS if any(line["task"] == task for line in lines)]
    methods = [m for m in METHODS if m != "plain" and any(line["method"] == m for line in lines)]
    figure = Figure(figsize=(4 * len(batches), 3.6), layout="constrained")
    panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    width = 0.8 / max(1, len(methods))
    for axes, batch in zip(panels, batches, strict=True):
        for number, method in enumerate(methods):
            of_task = {
                line["task"]: float(line["speed_ratio"])
                for line in lines
                if int(line["batch"]) == batch and line["method"] == method
            }
            places = [i + number * width for i in range(len(tasks))]
            axes.bar(places, [of_task.get(task, 0.0) for task in tasks], width, label=method)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_xticks([i + 0.4 for i in range(len(tasks))], tasks, rotation=45)
        axes.set_title(f"{batch} at once")
    panels[0].set_ylabel("speed, plain decoding = 1")
    panels[-1].legend(fontsize="x-small")
    rcParams["svg.hashsalt"] = "decoding"
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the embedded one")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tasks", nargs="+", choices=TASKS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least-prompts", type=int, default=6, help="of a round")
    parser.add_argument("--waves", type=int, default=2, help="prompts of a round, in batches")
    parser.add_argument("--warm-up", type=int, default=32, help="prompts before the first round")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    options.tasks = options.tasks or list(real_tasks.TASKS if options.model else NANO_TASKS)
    name = f"decoding_{Path(options.model).name}" if options.model else "decoding"
    options.output = options.output or RESULTS / f"{name}.csv"
    if options.model is None:
        options.plot = options.plot or PLOT
    if "plain" not in options.methods:
        options.methods = ["plain", *options.methods]
    return options


if __name__ == "__main__":
    sys.exit(main())
