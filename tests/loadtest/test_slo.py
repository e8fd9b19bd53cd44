from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from loadtest.slo import Figures, Slo

LIMITS = Slo(
    requests_min=10,
    error_ratio_max=0.1,
    completion_p95_ms=100,
    ttft_p95_ms=50,
    inter_token_p95_ms=20,
)
AT_THE_LIMIT = Figures(
    requests=10, failures=1, completion_p95_ms=100, ttft_p95_ms=50, inter_token_p95_ms=20
)


def test_limits_are_inclusive() -> None:
    assert LIMITS.violations(AT_THE_LIMIT) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"requests": 9, "failures": 0}, "9 requests; at least 10"),
        ({"requests": 0, "failures": 0}, "0 requests"),
        ({"failures": 2}, "2 of 10 requests failed (20.00%)"),
        ({"completion_p95_ms": 101}, "completion_p95_ms is 101; at most 100"),
        ({"ttft_p95_ms": 51}, "ttft_p95_ms is 51"),
        ({"inter_token_p95_ms": 21}, "inter_token_p95_ms is 21"),
        ({"inter_token_p95_ms": None}, "inter_token_p95_ms: nothing was measured"),
    ],
    ids=lambda value: str(value),
)
def test_each_objective_can_be_missed(change: dict[str, Any], message: str) -> None:
    (line,) = LIMITS.violations(AT_THE_LIMIT.model_copy(update=change))
    assert line.startswith(message)


def test_the_committed_objectives_are_valid() -> None:
    Slo.load(Path(__file__).parents[2] / "loadtest" / "slo.yaml")


def test_a_misspelt_objective_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slo.yaml"
    path.write_text(LIMITS.model_dump_json().replace("ttft", "tfft"), encoding="utf-8")
    with pytest.raises(ValidationError):
        Slo.load(path)
