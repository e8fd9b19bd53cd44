"""The arithmetic of what eviction costs and gains."""

import pytest

from benchmarks.kv_cache import FIFTH, FIRST_TOKEN, FULL, Cell, policies, table
from benchmarks.kv_cache_server import Run, most_at_once


def cell(policy: str, number: int, first_token_s: float, step_s: float) -> Cell:
    return Cell(
        model="m",
        prompt_tokens=64,
        streams=1,
        policy=policy,
        round=number,
        first_token_s=first_token_s,
        step_s=step_s,
    )


def test_ratios_pair_cells_of_one_round() -> None:
    cells = [
        cell(FULL, 1, 1.0, 0.10),
        cell(FIFTH, 1, 0.5, 0.04),
        cell("h2o", 1, 1.5, 0.05),
        cell(FULL, 2, 2.0, 0.20),
        cell(FIFTH, 2, 1.0, 0.06),
        cell("h2o", 2, 2.2, 0.12),
    ]
    lines = {(line["policy"], line["figure"]): line for line in table(cells)}
    assert len(lines) == 6
    found = lines["h2o", FIRST_TOKEN]
    assert found["value"] == pytest.approx(1850)
    assert found["over_full"] == pytest.approx(1.3)
    assert (found["over_full_low"], found["over_full_high"]) == pytest.approx((1.1, 1.5))
    assert found["over_fifth"] == pytest.approx(2.6)
    assert lines[FULL, FIRST_TOKEN]["over_full"] == 1


def test_as_many_keys_are_held_as_the_prompt_has() -> None:
    fields = policies(1024)["h2o, as many keys"]["h2o"]  # type: ignore[index, call-overload]
    assert sum(fields.values()) == 1024  # type: ignore[union-attr]


@pytest.mark.parametrize("guess", [1, 4, 5, 6, 12])
def test_the_most_at_once_is_found_from_any_guess(guess: int) -> None:
    def attempt(count: int) -> Run:
        at_once, preempted = (count, 0) if count <= 5 else (count if count < 8 else 7, count - 5)
        return Run(
            requests=count, at_once=at_once, preempted=preempted, most_pages=0, tokens_per_s=1.0
        )

    assert most_at_once(attempt, guess) == 5
