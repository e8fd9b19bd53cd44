"""The runs of a benchmark, one after another: warm-up, then each concurrency."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from penstock.errors import ConfigurationError

from .load import closed_loop, open_loop, poisson_arrivals
from .prompts import (
    Prompt,
    load_dataset,
    repeat_to,
    synthetic_prompts,
    synthetic_text,
    words_for_tokens,
)
from .record import RequestRecord
from .settings import BenchSettings
from .statistics import Summary, summarise
from .target import Target, find_model

PROBE_WORDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run and its figures; `concurrency` None is an open loop without a limit."""

    model: str
    concurrency: int | None
    request_rate: float | None
    summary: Summary


Progress = Callable[[Run | None, int, int], None]
"""Called after each request and each run: the run or None, requests ended, requests in all."""


def no_progress(run: Run | None, done: int, total: int) -> None:
    """Ignore progress."""


async def measure(settings: BenchSettings, progress: Progress = no_progress) -> list[Run]:
    """Run the benchmark; failed requests are counted, not raised.

    Raises:
        ConfigurationError: no model, a bad dataset, or a request before the runs fails.
    """
    async with Target(settings, await find_model(settings)) as target:
        levels = _levels(settings)
        source = await _Prompts.prepare(settings, target)
        for body in target.bodies(source.take(settings.warmup_requests)):
            _check(await target.send(body))
        total = settings.num_prompts * len(levels)
        done = 0

        async def send(body: bytes) -> RequestRecord:
            nonlocal done
            record = await target.send(body)
            done += 1
            progress(None, done, total)
            return record

        runs: list[Run] = []
        for concurrency in levels:
            bodies = target.bodies(source.take(settings.num_prompts))
            if settings.request_rate is None:
                records = await closed_loop(send, bodies, concurrency=concurrency or 1)
            else:
                arrivals_s = poisson_arrivals(
                    len(bodies), rate_per_s=settings.request_rate, seed=settings.seed
                )
                records = await open_loop(
                    send, bodies, arrivals_s=arrivals_s, concurrency=concurrency
                )
            run = Run(
                model=target.model,
                concurrency=concurrency,
                request_rate=settings.request_rate,
                summary=summarise(records, settings.slo),
            )
            runs.append(run)
            progress(run, done, total)
        return runs


def _levels(settings: BenchSettings) -> list[int | None]:
    if settings.concurrency is not None:
        return list(settings.concurrency)
    return [1] if settings.request_rate is None else [None]


class _Prompts:
    """Hands out prompts; synthetic ones are new for each run, so that no prefix cache helps."""

    def __init__(self, settings: BenchSettings, *, words: int) -> None:
        self._words = words
        self._seed = settings.seed
        self._dataset = None if settings.dataset is None else load_dataset(settings.dataset)

    @classmethod
    async def prepare(cls, settings: BenchSettings, target: Target) -> "_Prompts":
        """Measure the server's tokens per word; not needed with a dataset."""
        samples: list[tuple[int, int]] = []
        if settings.dataset is None:
            source = random.Random(settings.seed + 1)
            for words in (PROBE_WORDS, PROBE_WORDS + settings.input_tokens):
                text = synthetic_text(words, source)
                record = await target.send(target.body(Prompt(text=text), output_tokens=1))
                _check(record)
                if record.prompt_tokens:
                    samples.append((words, record.prompt_tokens))
        return cls(settings, words=words_for_tokens(settings.input_tokens, samples))

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts; a dataset starts from its top each time."""
        if self._dataset is not None:
            return repeat_to(self._dataset, count)
        self._seed += 2
        return synthetic_prompts(count, words=self._words, seed=self._seed)


def _check(record: RequestRecord) -> None:
    if record.error is not None:
        raise ConfigurationError(f"a request sent before the runs failed: {record.error}")
