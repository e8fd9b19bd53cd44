"""From request records to the figures of a report; pure functions."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .record import RequestRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean, median and 99th percentile of some times, in milliseconds; NaN without any."""

    mean_ms: float
    median_ms: float
    p99_ms: float

    @classmethod
    def of(cls, values_s: Sequence[float]) -> "Spread":
        """Summarise times given in seconds."""
        if not values_s:
            return cls(mean_ms=math.nan, median_ms=math.nan, p99_ms=math.nan)
        ordered = sorted(values_s)
        return cls(
            mean_ms=math.fsum(ordered) / len(ordered) * 1e3,
            median_ms=percentile(ordered, 50) * 1e3,
            p99_ms=percentile(ordered, 99) * 1e3,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """The limits that a request must meet to count towards goodput; None is no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2el_ms: float | None = None

    @property
    def demands_nothing(self) -> bool:
        """Whether no limit is set, so that every request passes."""
        return self.ttft_ms is None and self.tpot_ms is None and self.e2el_ms is None

    def met_by(self, record: RequestRecord) -> bool:
        """Whether a successful request met every limit; a time that does not exist meets it."""
        demands = (
            (self.ttft_ms, record.ttft_s),
            (self.tpot_ms, record.tpot_s),
            (self.e2el_ms, record.e2el_s),
        )
        return all(
            limit_ms is None or took_s is None or took_s * 1e3 <= limit_ms
            for limit_ms, took_s in demands
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures of one run. Rates and times are over successful requests only.

    `duration_s` runs from the first request's start to the last one's end, failed ones included.
    `goodput_per_s` is None if no objective was given.
    `tokens_from` says how output tokens were counted: by the server's `usage`, by `chunks`, or
    `mixed` if only some answers had usage.
    """

    requests: int
    failed: int
    failures: dict[str, int]
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    tokens_from: str
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    goodput_per_s: float | None
    ttft: Spread
    tpot: Spread
    itl: Spread
    e2el: Spread


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of ascending, non-empty values, interpolated linearly (NumPy's default)."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summarise(records: Sequence[RequestRecord], slo: Slo) -> Summary:
    """Summarise the records of one run; `records` is not empty."""
    done = [record for record in records if record.error is None]
    duration_s = max(r.ended_s for r in records) - min(r.started_s for r in records)
    per_s = 1 / duration_s if duration_s > 0 else 0.0
    prompt_tokens = sum(record.prompt_tokens or 0 for record in done)
    output_tokens = sum(record.output_tokens for record in done)
    good = sum(slo.met_by(record) for record in done)
    return Summary(
        requests=len(records),
        failed=len(records) - len(done),
        failures=dict(Counter(r.error for r in records if r.error is not None).most_common()),
        duration_s=duration_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        tokens_from=_tokens_from(done),
        requests_per_s=len(done) * per_s,
        output_tokens_per_s=output_tokens * per_s,
        total_tokens_per_s=(prompt_tokens + output_tokens) * per_s,
        goodput_per_s=None if slo.demands_nothing else good * per_s,
        ttft=Spread.of([r.ttft_s for r in done if r.ttft_s is not None]),
        tpot=Spread.of([r.tpot_s for r in done if r.tpot_s is not None]),
        itl=Spread.of([gap_s for record in done for gap_s in record.itl_s]),
        e2el=Spread.of([record.e2el_s for record in done]),
    )


def _tokens_from(done: Sequence[RequestRecord]) -> str:
    with_usage = sum(record.completion_tokens is not None for record in done)
    if with_usage == len(done):
        return "usage"
    return "mixed" if with_usage else "chunks"
