"""What evicting costs and gains in time, beside the full cache; and one very long answer.

    python benchmarks/kv_cache.py [--models llama-85m] [--prompts 1024 2048] [--streams 1]

Models are random ones of `benchmarks/models.py`, or folders of checkpoints. Within a round all
policies read the same prompts, one after the other, so that a drift of the machine hits all. A
ratio is the policy's time over that of the full cache in that round; the table has the median of
the rounds. `h2o, as many keys` holds as many keys as the full cache when the prompt has been read,
and evicts one for each token: what is dearer is collecting scores and choosing victims. `full, a
fifth of the prompt` holds as many keys as h2o's 20%, and `over_fifth` compares with it.
The time of a decoding step is the mean over four intervals between evictions.

`--answer 20000` adds one answer of that length, in a pool of 1,024 tokens.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

# At the end: an installed package must win over a folder of that name.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import results
from benchmarks.models import SIZES, long_model_folder
from benchmarks.provenance import Provenance
from penstock import SamplingParams
from penstock.bench.report import plain_table
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.requests.input import Input
from penstock.registry import Spec

OUTPUT: Final = Path(__file__).resolve().parent / "results" / "kv_cache.csv"
INTERVAL: Final = 16
STEPS: Final = 4 * INTERVAL
FULL: Final = "full"
FIFTH: Final = "full, a fifth of the prompt"
FIRST_TOKEN: Final = "time to first token, ms"
STEP: Final = "decoding step, ms"
LONG_PROMPT: Final = 512
POOL_TOKENS: Final = 1024
FOLDER_CACHE: Final = 2 << 30
"""Bytes of cache for a model from a folder."""

Line = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One policy, one prompt, one round: seconds."""

    model: str
    prompt_tokens: int
    streams: int
    policy: str
    round: int
    first_token_s: float
    step_s: float


def policies(prompt_tokens: int) -> dict[str, Spec]:
    """What is compared, for a prompt of that length."""
    half = prompt_tokens // 2
    return {
        FULL: None,
        FIFTH: None,
        "h2o, as many keys": {
            "h2o": {"heavy": half, "recent": half - INTERVAL, "interval": INTERVAL}
        },
        "h2o, 20%": {"h2o": {"heavy": 0.1, "recent": 0.1, "interval": INTERVAL}},
        "h2o, 20%, 32 votes": {
            "h2o": {"heavy": 0.1, "recent": 0.1, "interval": INTERVAL, "score_window": 32}
        },
        "window, 20%": {"window": {"recent": 0.2, "interval": INTERVAL}},
    }


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    lines: list[Line] = []
    for model in options.models:
        lines += table(list(measure(model, options)))
        if options.answer:
            lines += long_answer(model, options.answer)
    show(lines)
    results.write(options.output, lines, Provenance.now("torch", "transformers"))
    return 0


def measure(model: str, options: argparse.Namespace) -> Iterator[Cell]:
    """All rounds of one model; the first, a warm-up, is thrown away."""
    longest = max(options.prompts) + STEPS * max(options.streams) + INTERVAL
    built = build(model, longest, 2 * longest * max(options.streams))
    rng = Random("kv cache")
    cases = [(length, streams) for length in options.prompts for streams in options.streams]
    for number in range(options.rounds + 1):
        for prompt_tokens, streams in cases[: 1 if number == 0 else None]:
            prompts = [
                [rng.randrange(3, built.info.vocab_size) for _ in range(prompt_tokens)]
                for _ in range(streams)
            ]
            for policy, kv_cache in policies(prompt_tokens).items():
                if policy not in {FULL, FIFTH, *options.policies}:
                    continue
                tokens = prompt_tokens // 5 if policy == FIFTH else prompt_tokens
                first_token_s, step_s = _answers(
                    built, [prompt[:tokens] for prompt in prompts], kv_cache
                )
                cell = Cell(
                    model=Path(model).name,
                    prompt_tokens=prompt_tokens,
                    streams=streams,
                    policy=policy,
                    round=number,
                    first_token_s=first_token_s,
                    step_s=step_s,
                )
                if number:
                    yield cell


def table(cells: Sequence[Cell]) -> list[Line]:
    """Two lines for each model, prompt, number of streams and policy."""
    by_round = {(c.policy, c.prompt_tokens, c.streams, c.round): c for c in cells}
    groups: dict[tuple[str, int, int, str], list[Cell]] = {}
    for c in cells:
        groups.setdefault((c.model, c.prompt_tokens, c.streams, c.policy), []).append(c)
    lines: list[Line] = []
    for (model, prompt_tokens, streams, policy), members in groups.items():
        for name, figure in (("first_token_s", FIRST_TOKEN), ("step_s", STEP)):
            times_s: list[float] = [getattr(c, name) for c in members]
            full, fifth = (
                [
                    getattr(c, name)
                    / getattr(by_round[other, prompt_tokens, streams, c.round], name)
                    for c in members
                ]
                for other in (FULL, FIFTH)
            )
            value = statistics.median(times_s) * 1e3
            lines.append(
                line(model, policy, prompt_tokens, STEPS + 1, figure, value, full)
                | {"streams": streams, "over_fifth": statistics.median(fifth)}
            )
    return lines


def long_answer(model: str, tokens: int) -> list[Line]:
    """One answer far beyond the pool: time of its steps, early and late, and pages held."""
    built = build(model, LONG_PROMPT + tokens, POOL_TOKENS)
    rng = Random("kv cache")
    prompt = [rng.randrange(3, built.info.vocab_size) for _ in range(LONG_PROMPT)]
    policy = f"h2o, 20%, in a pool of {POOL_TOKENS} tokens"
    pages: list[int] = []
    times_s: list[float] = []
    for at_s in _answer(built, prompt, tokens, {"h2o": {"interval": INTERVAL}}):
        times_s.append(at_s)
        pages.append(built.engine.pool.in_use)
    assert len(times_s) == tokens, "an answer of full length"
    early, late = times_s[:1001], times_s[-1001:]
    return [
        line(model, policy, LONG_PROMPT, tokens, figure, value, [])
        for figure, value in (
            ("pages held after the prompt, least", min(pages[:-1])),
            ("pages held after the prompt, most", max(pages[:-1])),
            ("step among the first 1,000, ms", early[-1] - early[0]),
            ("step among the last 1,000, ms", late[-1] - late[0]),
        )
    ]


def line(
    model: str,
    policy: str,
    prompt_tokens: int,
    answer_tokens: int,
    figure: str,
    value: float,
    over_full: Sequence[float],
) -> Line:
    """A result; `over_full`: ratios to the full cache, one a round."""
    return {
        "model": model,
        "policy": policy,
        "prompt_tokens": prompt_tokens,
        "answer_tokens": answer_tokens,
        "figure": figure,
        "value": value,
        "over_full": statistics.median(over_full) if over_full else "",
        "over_full_low": min(over_full, default=""),
        "over_full_high": max(over_full, default=""),
        "streams": 1,
        "over_fifth": "",
        "rounds": max(1, len(over_full)),
    }


def show(lines: Sequence[Line]) -> None:
    """Print a table."""
    columns = list(lines[0])
    print("\n".join(plain_table([columns, *([_shown(one[c]) for c in columns] for one in lines)])))


def build(model: str, positions: int, pool_tokens: int) -> Built:
    """An engine for contexts of `positions`, with a pool of `pool_tokens`."""
    if model in SIZES:
        config = EngineConfig(
            model=str(long_model_folder(model, positions)),
            dtype="float32",
            kv_cache_memory=pool_tokens * SIZES[model].kv_bytes_per_token,
            prefix_cache=False,
        )
    else:
        config = EngineConfig(model=model, kv_cache_memory=FOLDER_CACHE, prefix_cache=False)
    return build_engine(config, time.perf_counter)


def _answers(built: Built, prompts: Sequence[list[int]], kv_cache: Spec) -> tuple[float, float]:
    """Seconds until all streams have a token, and seconds of a step from then on."""
    begun_s = time.perf_counter()
    for number, prompt in enumerate(prompts):
        # Streams that begin earlier go on until the last has had its steps.
        room = (len(prompts) - 1 - number) * STEPS
        _add(built, f"r{number}", prompt, STEPS + 1 + room, kv_cache)
    begun: set[str] = set()
    times_s: list[float] = []
    while len(times_s) <= STEPS:
        outputs = built.engine.step()
        begun |= {output.request_id for output in outputs}
        if len(begun) == len(prompts):
            times_s.append(time.perf_counter())
        ended = any(output.finish_reason is not None for output in outputs)
        assert not ended or len(times_s) > STEPS, "all streams go on until the last step"
    for request_id in begun:
        built.engine.abort(request_id)
    while built.engine.has_work:
        built.engine.step()
    return times_s[0] - begun_s, (times_s[-1] - times_s[0]) / STEPS


def _answer(built: Built, prompt: list[int], tokens: int, kv_cache: Spec) -> Iterator[float]:
    """When each token of one greedy answer came."""
    _add(built, "r", prompt, tokens, kv_cache)
    while built.engine.has_work:
        if built.engine.step():
            yield time.perf_counter()


def _add(built: Built, request_id: str, prompt: list[int], tokens: int, kv_cache: Spec) -> None:
    request = built.input_processor.prepare(
        Input(
            request_id=request_id,
            prompt=prompt,
            params=SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True),
            kv_cache=kv_cache,
        )
    )
    built.engine.add(request)


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", default=["llama-85m"])
    parser.add_argument("--prompts", nargs="+", type=int, default=[1024, 2048])
    parser.add_argument("--streams", nargs="+", type=int, default=[1])
    parser.add_argument("--policies", nargs="+", default=list(policies(100)))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--answer", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
