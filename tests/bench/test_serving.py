"""The comparison's arithmetic, and what it refuses to compare."""

import pytest

from benchmarks import contenders
from benchmarks.server_process import ServerError
from benchmarks.serving import Cell, check, line, ratio, table
from penstock.bench.benchmark import Run
from penstock.bench.record import RequestRecord
from penstock.bench.statistics import Slo, summarise
from penstock.errors import ConfigurationError


def run(tokens_per_s: float, *, tokens: int = 64, error: str | None = None) -> Run:
    record = RequestRecord(
        started_s=0, ended_s=tokens / tokens_per_s, completion_tokens=tokens, error=error
    )
    return Run(model="m", concurrency=1, request_rate=None, summary=summarise([record], Slo()))


def cell(server: str, tokens_per_s: float, *, number: int = 1, concurrency: int = 1) -> Cell:
    return Cell(
        server=server, model="m", round=number, concurrency=concurrency, run=run(tokens_per_s)
    )


CELLS = [
    cell("penstock", 20),
    cell("transformers", 10),
    cell("penstock", 90, number=2),
    cell("transformers", 30, number=2),
    cell("penstock", 80, concurrency=4),
    cell("transformers", 20, concurrency=4),
]


def test_ratios_pair_runs_of_one_round() -> None:
    assert [ratio(c, CELLS) for c in CELLS] == [2, None, 3, None, 4, None]


def test_ratio_without_a_partner() -> None:
    assert ratio(CELLS[0], CELLS[:1]) is None


def test_table_has_medians_and_ranges() -> None:
    assert table(CELLS)[1:] == [
        ["m", "1", "55.0", "20.0", "2.50", "2.00 to 3.00"],
        ["m", "4", "80.0", "20.0", "4.00", "4.00 to 4.00"],
    ]


def test_line_is_flat_and_has_units() -> None:
    record = line(CELLS[0], CELLS)
    assert record["ratio_of_output_tokens_per_s"] == 2
    assert record["output_tokens_per_s"] == pytest.approx(20)
    assert record["server"] == "penstock"


def test_short_answers_are_not_compared() -> None:
    check("x", run(1), 64)
    with pytest.raises(ConfigurationError, match="63 tokens in 1 answers, 64 each"):
        check("x", run(1, tokens=63), 64)


def test_failures_are_not_compared() -> None:
    with pytest.raises(ConfigurationError, match="boom"):
        check("x", run(1, error="boom"), 64)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        return None

    monkeypatch.setattr(contenders, "find_spec", missing)
    with pytest.raises(ServerError, match="pip install accelerate"):
        contenders.check_installed(["penstock", "transformers"])
    contenders.check_installed(["penstock"])
