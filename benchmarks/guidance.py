"""What guidance does to nano's stories: wanted things mentioned, unwanted ones left out, by scale.

    python benchmarks/guidance.py [--examples 100] [--scales 1 1.25 1.5 2 3 5]

Requests are held out, decoding is greedy. Two negative prompts are compared: the prompt's last
token alone, as in the paper, and a contrary request, for what was to be left out and for nothing
that was wanted. Intervals are 95%, by resampling the requests.
"""

import argparse
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

from matplotlib import rcParams
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import results
from benchmarks.provenance import ROOT, Provenance
from penstock import SamplingParams
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.outputs.output_state import OutputState
from penstock.engine.requests.input import Input
from penstock.models.nano.abilities import storytelling
from penstock.models.nano.abilities.example import Example

RESULTS: Final = ROOT / "benchmarks" / "results" / "guidance.csv"
PLOT: Final = ROOT / "docs" / "decoding" / "guidance.svg"
LAST_TOKEN, CONTRARY = "last token", "contrary request"
SCORES: Final = ("wanted", "unwanted left out")
_RESAMPLES: Final = 1000
_UNWANTED: Final = re.compile(
    r",?(?: but)?,? without ((?:an? |the |some )?\w+)(?: and without (\w+))?"
)


def main() -> int:
    """Measure, print, write, draw."""
    options = _parse()
    built = build_engine(EngineConfig(model=options.model), time.perf_counter)
    rng = Random("guidance")
    # Half of them with something unwanted, which is seldom among the requests otherwise.
    examples = _draw(rng, options.examples, unwanted=True)
    examples += _draw(rng, options.examples, unwanted=False)
    lines: list[dict[str, Any]] = []
    for negative in (LAST_TOKEN, CONTRARY):
        for scale in tqdm(options.scales, desc=negative, unit="scale", file=sys.stderr):
            lines.append(_measure(built, examples, scale, negative))
            tqdm.write("  ".join(f"{value}" for value in lines[-1].values()))
    results.write(options.output, lines, Provenance.now("torch", "transformers"))
    _plot(lines, options.plot)
    return 0


def contrary(request: str) -> str:
    """The request for a story with what was to be left out, and nothing else that was asked for.

    Without such a thing: a story about anything.
    """
    found = _UNWANTED.search(request)
    if found is None:
        return "Write a story."
    return f"Write a story about {' and '.join(word for word in found.groups() if word)}."


def _draw(rng: Random, count: int, *, unwanted: bool) -> list[Example]:
    found: list[Example] = []
    while len(found) < count:
        one = storytelling.example(rng, "held_out")
        if ("without" in one.turns[-2].text) == unwanted and len(one.turns) == 2:
            found.append(one)
    return found


def _measure(
    built: Built, examples: Sequence[Example], scale: float, negative: str
) -> dict[str, Any]:
    started_s = time.perf_counter()
    scores: dict[str, list[float]] = {name: [] for name in SCORES}
    answers = _answer(built, [one.turns[-2].text for one in examples], scale, negative)
    for one, (text, _) in zip(examples, answers, strict=True):
        for name, score in one.grade(text).items():
            scores[name].append(score)
    line: dict[str, Any] = {"negative": negative, "scale": scale}
    for name in SCORES:
        low, high = _interval(scores[name])
        key = name.replace(" ", "_")
        line[key] = round(statistics.fmean(scores[name]), 4)
        line[f"{key}_low"], line[f"{key}_high"] = round(low, 4), round(high, 4)
        line[f"{key}_requests"] = len(scores[name])
    line["ended"] = round(statistics.fmean(ended for _, ended in answers), 4)
    line["seconds"] = round(time.perf_counter() - started_s, 1)
    return line


def _answer(
    built: Built, requests: Sequence[str], scale: float, negative: str
) -> list[tuple[str, bool]]:
    """Text of each answer, and whether it ended by itself."""
    tokenizer, engine = built.input_processor.tokenizer, built.engine
    output_states: dict[str, OutputState] = {}
    texts: dict[str, str] = {}
    ended: dict[str, bool] = {}
    for number, request in enumerate(requests):
        cfg: dict[str, Any] = {"scale": scale}
        if negative == CONTRARY:
            cfg["negative_messages"] = [{"role": "user", "content": contrary(request)}]
        prepared = built.input_processor.prepare(
            Input(
                request_id=str(number),
                prompt=tokenizer.render_chat([{"role": "user", "content": request}]),
                params=SamplingParams(max_tokens=400, temperature=0),
                decoding={"cfg": cfg},
            )
        )
        output_states[prepared.id] = OutputState(prepared, tokenizer)
        texts[prepared.id] = ""
        engine.add(prepared)
    while engine.has_work:
        for output in engine.step():
            delta, _ = output_states[output.request_id].feed(output)
            if delta is not None:
                texts[output.request_id] += delta.text
                ended[output.request_id] = delta.finish_reason == "stop"
    return [(text, ended[name]) for name, text in texts.items()]


def _interval(values: Sequence[float]) -> tuple[float, float]:
    rng = Random(0)
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return means[int(0.025 * _RESAMPLES)], means[int(0.975 * _RESAMPLES)]


def _plot(lines: Sequence[Mapping[str, Any]], out: Path) -> None:
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = figure.subplots(1, len(SCORES), sharex=True)
    for axes, name in zip(panels, SCORES, strict=True):
        key = name.replace(" ", "_")
        for negative in dict.fromkeys(line["negative"] for line in lines):
            chosen = [line for line in lines if line["negative"] == negative]
            scales = [line["scale"] for line in chosen]
            axes.plot(scales, [line[key] for line in chosen], marker="o", label=negative)
            axes.fill_between(
                scales,
                [line[f"{key}_low"] for line in chosen],
                [line[f"{key}_high"] for line in chosen],
                alpha=0.15,
            )
        axes.set(xlabel="scale", ylabel=name)
        axes.grid(visible=True, alpha=0.3)
    panels[0].legend(title="negative prompt")
    rcParams["svg.hashsalt"] = "guidance"
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the embedded one")
    parser.add_argument(
        "--examples", type=int, default=60, help="with something unwanted, and without"
    )
    parser.add_argument("--scales", type=float, nargs="+", default=[0.5, 1, 1.25, 1.5, 2, 3, 5])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
