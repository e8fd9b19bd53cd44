import math
import random

import numpy as np
import pytest

from penstock.bench.record import RequestRecord
from penstock.bench.statistics import Slo, Spread, percentile, summarise


def make(
    *chunk_times_s: float,
    started_s: float = 0.0,
    ended_s: float | None = None,
    tokens: int | None = None,
    error: str | None = None,
) -> RequestRecord:
    return RequestRecord(
        started_s=started_s,
        ended_s=ended_s if ended_s is not None else (started_s, *chunk_times_s)[-1],
        chunk_times_s=chunk_times_s,
        prompt_tokens=None if tokens is None else 10,
        completion_tokens=tokens,
        error=error,
    )


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100, 101])
@pytest.mark.parametrize("percent", [0, 1, 50, 99, 99.9, 100])
def test_percentile_is_numpys(count: int, percent: float) -> None:
    source = random.Random(count)
    values = sorted(source.expovariate(1) for _ in range(count))
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)))


def test_spread_of_nothing_is_not_a_number() -> None:
    assert all(map(math.isnan, (Spread.of([]).mean_ms, Spread.of([]).p99_ms)))


def test_spread_is_in_milliseconds() -> None:
    spread = Spread.of([0.003, 0.001, 0.002])
    assert (spread.mean_ms, spread.median_ms) == pytest.approx((2.0, 2.0))


def test_times_of_one_request() -> None:
    record = make(1.5, 1.75, 2.5, started_s=1.0, ended_s=2.75, tokens=5)
    assert record.ttft_s == 0.5
    assert record.itl_s == [0.25, 0.75]
    assert record.tpot_s == 1.0 / 4
    assert record.e2el_s == 1.75


@pytest.mark.parametrize(
    "record",
    [make(tokens=0), make(1.0, tokens=1), make(1.0), make(1.0, tokens=7)],
    ids=["no text", "one token", "one chunk", "one burst"],
)
def test_time_per_token_needs_two_moments(record: RequestRecord) -> None:
    assert record.tpot_s is None


def test_summary_equals_brute_force() -> None:
    source = random.Random(0)
    records: list[RequestRecord] = []
    for index in range(50):
        started_s = source.random() * 5
        times = [started_s + 0.1]
        for _ in range(source.randrange(30)):
            times.append(times[-1] + source.expovariate(20))
        error = "boom" if index % 10 == 3 else None
        records.append(
            make(*times, started_s=started_s, tokens=len(times) + index % 2, error=error)
        )
    summary = summarise(records, Slo(e2el_ms=1000))
    done = [record for record in records if record.error is None]
    first_s, last_s = min(r.started_s for r in records), max(r.ended_s for r in records)

    assert (summary.requests, summary.failed, summary.failures) == (50, 5, {"boom": 5})
    assert summary.duration_s == pytest.approx(last_s - first_s)
    assert summary.output_tokens == sum(r.completion_tokens or 0 for r in done)
    assert summary.output_tokens_per_s == pytest.approx(summary.output_tokens / summary.duration_s)
    assert summary.total_tokens_per_s == pytest.approx(
        (summary.output_tokens + 10 * len(done)) / summary.duration_s
    )
    assert summary.requests_per_s == pytest.approx(45 / summary.duration_s)
    gaps = [b - a for r in done for a, b in zip(r.chunk_times_s, r.chunk_times_s[1:], strict=False)]
    assert summary.itl.median_ms == pytest.approx(float(np.median(gaps)) * 1e3)
    assert summary.itl.p99_ms == pytest.approx(float(np.percentile(gaps, 99)) * 1e3)
    assert summary.ttft.mean_ms == pytest.approx(100)
    good = sum(r.ended_s - r.started_s <= 1 for r in done)
    assert summary.goodput_per_s == pytest.approx(good / summary.duration_s)


def test_goodput_is_absent_without_objectives() -> None:
    assert summarise([make(1.0)], Slo()).goodput_per_s is None


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        (Slo(ttft_ms=500), True),
        (Slo(ttft_ms=499), False),
        (Slo(tpot_ms=250), True),
        (Slo(tpot_ms=249), False),
        (Slo(e2el_ms=1000), True),
        (Slo(e2el_ms=999), False),
        (Slo(ttft_ms=500, tpot_ms=250, e2el_ms=999), False),
    ],
    ids=str,
)
def test_objectives_are_inclusive_and_all_hold(slo: Slo, met: bool) -> None:
    assert slo.met_by(make(0.5, 0.75, 1.0, tokens=3)) is met


def test_objective_on_a_time_that_does_not_exist_is_met() -> None:
    assert Slo(tpot_ms=1).met_by(make(0.5, tokens=1))


@pytest.mark.parametrize(
    ("records", "source"),
    [
        ([make(1.0, tokens=2)], "usage"),
        ([make(1.0)], "chunks"),
        ([make(1.0, tokens=2), make(1.0)], "mixed"),
    ],
    ids=["usage", "chunks", "mixed"],
)
def test_summary_says_how_tokens_were_counted(records: list[RequestRecord], source: str) -> None:
    assert summarise(records, Slo()).tokens_from == source


def test_run_in_which_everything_failed() -> None:
    summary = summarise([make(error="refused"), make(error="refused")], Slo(ttft_ms=1))
    assert (summary.failed, summary.output_tokens_per_s, summary.goodput_per_s) == (2, 0, 0)
    assert math.isnan(summary.ttft.mean_ms)
