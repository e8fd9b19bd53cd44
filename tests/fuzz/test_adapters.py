"""Some of the cases of `make fuzz`, the same ones each time."""

from pathlib import Path

import pytest

from tests.fuzz.adapters import make_bases, one


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    make_bases(folder)
    return folder


def test_served_or_refused_by_name(base: Path) -> None:
    outcomes: set[str] = set()
    for case in range(150):
        outcome, finding = one(case, base)
        assert finding is None, case
        outcomes.add(outcome)
    assert outcomes <= {"served", "refused", "numbers overflow"}
    assert {"served", "refused"} <= outcomes
