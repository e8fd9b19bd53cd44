"""What forgetting costs: perplexity and recall under each policy of the KV cache, by its budget.

    python benchmarks/kv_study.py [--texts stories facts | FILE ...] [--budgets 4 20 100]

A text's first part is read as a prompt, all else is fed token by token as if generated, through the
engine that serves: its policies, its pages, its eviction. Perplexity is exp of the mean over texts
of each text's mean negative log-probability. Recall is greedy answers to questions behind a text.
A budget is the share of a text's tokens, prompt and all, whose keys each head keeps; 100% keeps
everything. Differences are of the same texts, so that what the texts differ in is not in them.

Runs add to the results: lines of the same text, budget and policy are replaced, the others stay.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from benchmarks import kv_report, kv_texts, results
from benchmarks.kv_policies import POLICIES, Foretold, Ranked, Ranking, Recorder, at_random
from benchmarks.kv_texts import Question, Text
from benchmarks.provenance import ROOT, Provenance
from benchmarks.teacher_forcing import Job, forced, greedy
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.kvcache.eviction_state import EvictionState
from penstock.registry import Choice, Spec

RESULTS: Final = ROOT / "benchmarks" / "results" / "kv_study.csv"
PLOTS: Final = ROOT / "docs" / "kv-cache"
BUDGETS: Final = (4, 10, 20, 40, 60, 80, 100)
OWN: Final = {"stories": kv_texts.stories, "facts": kv_texts.facts}
QUESTIONS: Final = "questions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One policy and budget: a value for each text, in nats a token or as a share that is right."""

    budget: int
    policy: str
    values: list[float]


class Study:
    """Texts under policies. `seed`: of what `random` keeps."""

    def __init__(self, built: Built, texts: Sequence[Text], seed: int) -> None:
        self.built = built
        self.texts = texts
        self.seed = seed

    def nats(self, policy: str, budget: int) -> list[float]:
        """Each text's mean negative log-probability of the tokens that count."""
        jobs = self.jobs(policy, budget)
        answers = forced(self.built, jobs, [text.ids for text in self.texts])
        return [
            -statistics.fmean(answer.logprobs[at - text.prompt_tokens] for at in text.counted)
            for text, answer in zip(self.texts, answers, strict=True)
        ]

    def right(self, policy: str, budget: int, questions: Sequence[Question]) -> list[float]:
        """1 for each question that is answered right, with as many tokens as the answer has."""
        tokenizer = self.built.input_processor.tokenizer
        answers = greedy(self.built, self.jobs(policy, budget))
        return [
            question.example.grade(tokenizer.decode(answer.tokens))["right"]
            for question, answer in zip(questions, answers, strict=True)
        ]

    def jobs(self, policy: str, budget: int) -> list[Job]:
        """One for each text."""
        found: list[Job] = []
        for number, text in enumerate(self.texts):
            ranking = self.ranking(POLICIES[policy].ranked, number)
            keys = max(2, math.ceil(budget / 100 * len(text.ids)))
            spec = POLICIES[policy].spec(keys)
            found.append(_job(text, spec, partial(_ranked, by=ranking)))
        return found

    def ranking(self, ranked: Ranked, number: int) -> Ranking | None:
        """What keys are ranked by, where that is not the attention that they received."""
        match ranked:
            case "received":
                return None
            case "future":
                return self.futures[number]
            case "random":
                loaded = self.built.loaded
                return at_random(
                    f"{self.seed}/{number}",
                    layers=len(loaded.layers),
                    kv_heads=loaded.layers[0].kv_heads,
                    tokens=len(self.texts[number].ids),
                    device=loaded.device,
                )

    @cached_property
    def futures(self) -> list[Ranking]:
        """The future of each text, from a pass of its own; 4 bytes a layer, head, token and key."""
        loaded = self.built.loaded
        recorders = [
            Recorder(
                tokens=len(text.ids),
                prompt_tokens=text.prompt_tokens,
                layers=len(loaded.layers),
                kv_heads=loaded.layers[0].kv_heads,
                device=loaded.device,
            )
            for text in self.texts
        ]
        jobs = [
            _job(text, "full", partial(_recorded, recorder))
            for text, recorder in zip(self.texts, recorders, strict=True)
        ]
        forced(self.built, jobs, [text.ids for text in self.texts])
        return [recorder.future() for recorder in recorders]


def _job(
    text: Text, spec: Spec, eviction_state: Callable[[EvictionState | None], EvictionState | None]
) -> Job:
    return Job(
        prompt=text.ids[: text.prompt_tokens],
        tokens=len(text.ids) - text.prompt_tokens,
        kv_cache=spec,
        eviction_state=eviction_state,
    )


def _recorded(recorder: Recorder, own: EvictionState | None) -> EvictionState:
    assert own is None, "a full cache needs no state"
    return recorder


def _ranked(own: EvictionState | None, by: Ranking | None) -> EvictionState | None:
    if own is not None and by is not None:
        own.choice = Choice(method=Foretold(by), parameters=own.choice.parameters)
    return own


def main() -> int:
    """Measure, write, draw."""
    options = _parse()
    config = EngineConfig(model=options.model, max_running=options.batch, prefix_cache=False)
    built = build_engine(config, time.perf_counter)
    settings = [
        (budget, policy)
        for budget in options.budgets
        for policy in options.policies
        if policy != "full"
    ]
    lines: list[dict[str, Any]] = []
    for name in options.texts:
        rng = Random(f"kv study {name} {options.seed}")
        questions: list[Question] = []
        if name == QUESTIONS:
            questions = kv_texts.questions(built.input_processor.tokenizer, rng, options.count)
            texts = [question.text for question in questions]
        else:
            texts = _texts(built, name, rng, options)
        study = Study(built, texts, options.seed)
        cells: list[Cell] = []
        for budget, policy in tqdm([(100, "full"), *settings], desc=name, file=sys.stderr):
            if questions:
                values = study.right(policy, budget, questions)
            else:
                values = study.nats(policy, budget)
            cells.append(Cell(budget=budget, policy=policy, values=values))
        place = {"model": built.info.id, "text": Path(name).name}
        if questions:
            tags = [question.example.tags[0] for question in questions]
            for tag in (None, *sorted(set(tags))):
                chosen = [i for i, each in enumerate(tags) if tag in (None, each)]
                lines += [place | line for line in recalled(cells, chosen, tag or "all")]
        else:
            lines += [place | line for line in expected(cells, texts)]
    provenance = Provenance.now("torch", "transformers")
    every = results.merge(options.output, lines, provenance, kv_report.KEY)
    print("\n\n".join(kv_report.tables(every)))
    kv_report.draw(every, options.plots)
    return 0


def expected(cells: Sequence[Cell], texts: Sequence[Text]) -> list[dict[str, Any]]:
    """Lines of perplexity; differences are in nats a token."""
    lines = _lines(cells, range(len(texts)), measure="perplexity", group="all")
    for line in lines:
        line["mean"] = math.exp(line["mean"])
        line["standard_error"] *= line["mean"]
        line["tokens"] = sum(len(text.counted) for text in texts)
    return lines


def recalled(cells: Sequence[Cell], chosen: Sequence[int], group: str) -> list[dict[str, Any]]:
    """Lines of recall, of the chosen questions; means and differences are shares."""
    lines = _lines(cells, chosen, measure="right", group=group)
    return [line | {"tokens": None} for line in lines]


def _lines(
    cells: Sequence[Cell], chosen: Sequence[int], *, measure: str, group: str
) -> list[dict[str, Any]]:
    references = {"full": cells[0].values}
    lines: list[dict[str, Any]] = []
    for cell in cells:
        of_budget = {c.policy: c.values for c in cells if c.budget == cell.budget} | references
        mean, error = mean_and_error([cell.values[i] for i in chosen])
        line: dict[str, Any] = {
            "budget_percent": cell.budget,
            "policy": cell.policy,
            "measure": measure,
            "group": group,
            "mean": mean,
            "standard_error": error,
        }
        for other in ("full", "h2o"):
            values = of_budget.get(other)
            over = values and mean_and_error([cell.values[i] - values[i] for i in chosen])
            line |= dict(
                zip((f"over_{other}", f"over_{other}_se"), over or (None, None), strict=True)
            )
        lines.append(line | {"texts": len(chosen)})
    return lines


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; with one value that is unknown, NaN."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def _texts(built: Built, name: str, rng: Random, options: argparse.Namespace) -> list[Text]:
    tokenizer = built.input_processor.tokenizer
    if name in OWN:
        return OWN[name](tokenizer, rng, options.count)
    return kv_texts.pieces(
        tokenizer,
        Path(name).read_text(encoding="utf-8"),
        tokens=options.tokens,
        prompt_tokens=options.prompt_tokens,
        most=options.count,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--model", help="folder of a model; default: the embedded one")
    parser.add_argument(
        "--texts",
        nargs="*",
        default=[*OWN, QUESTIONS],
        help=f"files, or {', '.join(OWN)}, {QUESTIONS}, which are for the embedded model; "
        "none: tables and plots of the results that there are",
    )
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), help="percent")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--count", type=int, default=16, help="texts, or questions")
    parser.add_argument("--tokens", type=int, default=1024, help="of a piece of a file")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="of them")
    parser.add_argument("--batch", type=int, default=16, help="texts at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--plots", type=Path, default=PLOTS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
