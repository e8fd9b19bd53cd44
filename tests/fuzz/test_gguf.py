"""Some of the cases of `make fuzz`, the same ones each time."""

from pathlib import Path

import pytest

from tests.fuzz.gguf import make_bases, one


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    make_bases(folder)
    return folder


@pytest.mark.parametrize("case", range(30))
def test_served_or_refused_by_name(case: int, base: Path) -> None:
    outcome, finding = one(case, base)
    assert finding is None
    assert outcome in ("served", "refused", "refused a prompt", "numbers overflow")
