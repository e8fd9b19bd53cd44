"""What reading a prompt sparsely costs in quality: facts found in a text, and answers expected.

    python benchmarks/sparse_quality.py [--model FOLDER] [--count 200] [--recent 64 256]

Texts of facts are read with each form of `sparse_prefill`, rows from the 128th token on; then a
question is answered greedily (the share of right answers), and the right answers to twelve
questions are fed (their mean negative log-probability, in nats a token, beyond that of the same
texts read exactly). Rows of questions see a part of the keys too, rows of answers all of them.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from benchmarks import kv_texts
from benchmarks.kv_texts import Text
from benchmarks.provenance import ROOT, Provenance
from benchmarks.results import write
from benchmarks.teacher_forcing import Continued, Job, forced, greedy
from penstock.bench.report import plain_table
from penstock.decoding.sparse_parameters import LEAST_TOKENS
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.registry import Spec

OUTPUT: Final = ROOT / "benchmarks" / "results" / "sparse_quality.csv"
FORMS: Final[dict[str, dict[str, Any]]] = {
    "qk 0.5": {"method": "qk", "keep": 0.5},
    "qk 0.25": {"method": "qk", "keep": 0.25},
    "qk 0.1": {"method": "qk", "keep": 0.1},
    "hash 4": {"method": "hash", "buckets": 4},
    "hash 16": {"method": "hash", "buckets": 16},
    "hash 64": {"method": "hash", "buckets": 64},
}


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    config = EngineConfig(model=options.model, max_running=options.batch, prefix_cache=False)
    built = build_engine(config, time.perf_counter)
    tokenizer = built.input_processor.tokenizer
    questions = kv_texts.questions(tokenizer, Random(f"questions {options.seed}"), options.count)
    facts = kv_texts.facts(tokenizer, Random(f"facts {options.seed}"), options.count // 4)
    asked = [question.text for question in questions]
    settings: list[tuple[str, int | None, Spec]] = [("exact", None, None)]
    settings += [
        (form, recent, {"sparse_prefill": {**fields, "min_tokens": LEAST_TOKENS, "recent": recent}})
        for recent in options.recent
        for form, fields in FORMS.items()
    ]
    exact: list[float] = []
    lines: list[dict[str, Any]] = []
    for form, recent, spec in tqdm(settings, file=sys.stderr):
        answers = greedy(built, _jobs(asked, spec))
        right = [
            question.example.grade(tokenizer.decode(answer.tokens))["right"]
            for question, answer in zip(questions, answers, strict=True)
        ]
        nats = _nats(built, facts, spec)
        exact = exact or nats
        beyond = [mine - base for mine, base in zip(nats, exact, strict=True)]
        lines.append(
            {
                "model": built.info.id,
                "form": form,
                "recent": recent,
                "density": _density(answers),
                "right": statistics.fmean(right),
                "right_se": _error(right),
                "nats": statistics.fmean(nats),
                "nats_beyond_exact": statistics.fmean(beyond),
                "beyond_se": _error(beyond),
                "questions": len(questions),
                "texts": len(facts),
                "prompt_tokens": round(statistics.fmean(text.prompt_tokens for text in asked)),
            }
        )
    write(options.output, lines, Provenance.now("torch", "transformers"))
    shown = [[_shown(value) for value in line.values()] for line in lines]
    print("\n".join(plain_table([list(lines[0]), *shown])))
    return 0


def _jobs(texts: Sequence[Text], spec: Spec) -> list[Job]:
    return [
        Job(
            prompt=text.ids[: text.prompt_tokens],
            tokens=len(text.ids) - text.prompt_tokens,
            decoding=spec,
        )
        for text in texts
    ]


def _nats(built: Built, texts: Sequence[Text], spec: Spec) -> list[float]:
    """Of each text: mean negative log-probability of the tokens that count."""
    answers = forced(built, _jobs(texts, spec), [text.ids for text in texts])
    return [
        -statistics.fmean(answer.logprobs[at - text.prompt_tokens] for at in text.counted)
        for text, answer in zip(texts, answers, strict=True)
    ]


def _density(answers: Sequence[Continued]) -> float:
    causal = sum(answer.causal for answer in answers)
    return sum(answer.seen for answer in answers) / causal if causal else 1.0


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", help="a folder; nano by default, whose texts these are")
    parser.add_argument("--count", type=int, default=200, help="questions, 8 at least")
    parser.add_argument("--recent", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    if options.count < 8:
        parser.error("--count: 8 at least, for the standard errors")
    return options


if __name__ == "__main__":
    sys.exit(main())
