"""Where one decoding step of the engine spends its time, and how far it is from the limits.

    python benchmarks/engine_step.py [--models nano llama-4.6m llama-85m] [--concurrency 1 4 16]

Parts: scheduling, the model, attention (cache writes included; part of the model where layers are
compiled), sampling, committing (with all else that a step does), and detokenising, which the server
does beside it.
Limits: one read of the weights at the memory bandwidth measured in the same run, and the forward
pass of transformers with its own cache. All of them take turns, round after round.
"""

import argparse
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# At the end: an installed package must win over a folder of that name.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from transformers import AutoModelForCausalLM

from benchmarks.limits import (
    read_bandwidth,
    synchroniser,
    transformers_decode_s,
    weight_bytes_per_step,
)
from benchmarks.models import model_folder
from benchmarks.prompts import exact_prompt
from benchmarks.provenance import Provenance
from benchmarks.results import write
from benchmarks.stopwatch import Stopwatch
from penstock.bench.report import plain_table
from penstock.bench.statistics import percentile
from penstock.decoding.sampling_params import SamplingParams
from penstock.engine.attention.interface import PagedStep
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.outputs.output_state import OutputState
from penstock.engine.requests.input import Input

OUTPUT = Path(__file__).resolve().parent / "results" / "engine_step.csv"
STEP, STEP_TIMED = "step", "step, timed"
WEIGHTS, FORWARD = "limit: one read of the weights", "limit: transformers forward"
PARTS = ("schedule", "model", "attention", "sampling", "commit", "detokenise")

Times = dict[str, list[float]]
"""Seconds of every step, by part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An engine, and transformers' own model with the same weights."""

    built: Built
    reference: Any
    watch: Stopwatch

    @property
    def device(self) -> torch.device:
        """Where both are."""
        return self.built.loaded.device


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    lines: list[dict[str, Any]] = []
    for name in options.models:
        subject = load(model_folder(name), options)
        for concurrency in options.concurrency:
            times = measure(subject, concurrency, options)
            here = [{"model": name, "concurrency": concurrency} | row for row in summarise(times)]
            show(here)
            lines += here
    write(options.output, lines, Provenance.now("torch", "transformers"))
    return 0


def load(folder: Path, options: argparse.Namespace) -> Subject:
    """Both models of one folder, in float32."""
    config = EngineConfig(
        model=str(folder), device=options.device, dtype="float32", kv_cache_memory=2**28
    )
    built = build_engine(config, time.perf_counter)
    device = built.loaded.device
    reference: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    reference.to(device).eval()
    return Subject(built=built, reference=reference, watch=Stopwatch(synchroniser(device)))


def measure(subject: Subject, concurrency: int, options: argparse.Namespace) -> Times:
    """All rounds at one concurrency; the first, a warm-up, is thrown away."""
    weights_bytes = weight_bytes_per_step(subject.reference)
    kept: Times = defaultdict(list)
    for number in range(options.rounds + 1):
        times: Times = defaultdict(list)
        seed = number * 1000 + concurrency
        decode(subject, concurrency, seed, options.steps, times)
        with watched(subject):
            decode(subject, concurrency, seed + 500, options.steps, times, timed=True)
        ids = [prompt_ids(subject, source) for source in _sources(concurrency, seed)]
        prompt = torch.tensor(ids, device=subject.device)
        times[FORWARD] += transformers_decode_s(subject.reference, prompt, options.steps)
        times[WEIGHTS].append(weights_bytes / read_bandwidth(weights_bytes, subject.device))
        if number:
            for part, values in times.items():
                kept[part] += values
    return kept


def decode(
    subject: Subject, concurrency: int, seed: int, steps: int, times: Times, *, timed: bool = False
) -> None:
    """Read the prompts, then record `steps` steps in which every sequence decodes one token."""
    engine, input_processor = subject.built.engine, subject.built.input_processor
    params = SamplingParams(max_tokens=steps + 8, temperature=0.0, ignore_eos=True)
    output_states: dict[str, OutputState] = {}
    for index, source in enumerate(_sources(concurrency, seed)):
        request = input_processor.prepare(
            Input(request_id=f"{seed}-{index}", prompt=prompt_ids(subject, source), params=params)
        )
        output_states[request.id] = OutputState(request, input_processor.tokenizer)
        engine.add(request)
    synchronise = synchroniser(subject.device)
    begun: set[str] = set()
    while len(begun) < concurrency:
        begun |= {output.request_id for output in engine.step()}
    subject.watch.lap()
    for _ in range(steps):
        start_s = time.perf_counter()
        outputs = engine.step()
        synchronise()
        stepped_s = time.perf_counter()
        for output in outputs:
            output_states[output.request_id].feed(output)
        fed_s = time.perf_counter()
        assert len(outputs) == concurrency, "every sequence decodes in every step"
        if timed:
            step_s = stepped_s - start_s
            for part, spent_s in split(step_s, subject.watch.lap()).items():
                times[part].append(spent_s)
            times[STEP_TIMED].append(step_s)
        else:
            times[STEP].append(stepped_s - start_s)
            times["detokenise"].append(fed_s - stepped_s)
    for request_id in output_states:
        engine.abort(request_id)


def split(step_s: float, lap_s: dict[str, float]) -> dict[str, float]:
    """Parts of a step that do not overlap and add up to it."""
    inside_s = lap_s["schedule"] + lap_s["run"] + lap_s["sampling"]
    attention_s = lap_s.get("attention")
    apart = {} if attention_s is None else {"attention": attention_s}
    return apart | {
        "schedule": lap_s["schedule"],
        "model": lap_s["run"] - (attention_s or 0.0),
        "sampling": lap_s["sampling"],
        "commit": step_s - inside_s,
    }


@contextmanager
def watched(subject: Subject) -> Generator[None]:
    """Time the engine's parts inside the block."""
    engine, watch = subject.built.engine, subject.watch
    with ExitStack() as stack:
        stack.enter_context(watch.watching("schedule", engine.scheduler, "schedule"))
        stack.enter_context(watch.watching("run", engine.runner, "run"))
        stack.enter_context(watch.watching("sampling", engine.decoder.sampler, "draw"))
        stack.enter_context(watch.watching("attention", PagedStep, "__call__"))
        yield


def prompt_ids(subject: Subject, source: random.Random) -> list[int]:
    """A prompt of 64 tokens."""
    tokenizer = subject.built.input_processor.tokenizer
    return list(tokenizer.encode(exact_prompt(tokenizer.encode, 64, source)))


def summarise(times: Times) -> list[dict[str, Any]]:
    """Percentiles by part, with the part's share of the step whose parts were timed."""
    step_s = statistics.median(times[STEP_TIMED])
    rows: list[dict[str, Any]] = []
    for part in filter(times.get, (STEP, STEP_TIMED, *PARTS, WEIGHTS, FORWARD)):
        ordered = sorted(times[part])
        row: dict[str, Any] = {"part": part}
        for percent in (20, 50, 80):
            row[f"p{percent}_ms"] = percentile(ordered, percent) * 1e3
        row["share_of_step"] = statistics.median(ordered) / step_s
        row["samples"] = len(ordered)
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """One table for a model and a concurrency."""
    header = ["part", "p20, ms", "p50, ms", "p80, ms", "of step"]
    lines = [
        [
            row["part"],
            *(f"{row[f'p{percent}_ms']:.3f}" for percent in (20, 50, 80)),
            f"{row['share_of_step']:.1%}",
        ]
        for row in rows
    ]
    print(f"\n{rows[0]['model']}, {rows[0]['concurrency']} sequences")
    print("\n".join(plain_table([header, *lines])), flush=True)


def _sources(concurrency: int, seed: int) -> list[random.Random]:
    return [random.Random(seed * 100 + index) for index in range(concurrency)]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["nano", "llama-4.6m", "llama-85m"])
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32, help="decoding steps of a round")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
