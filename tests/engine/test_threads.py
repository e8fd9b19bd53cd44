"""Threads for small and large models on small and large machines."""

from pathlib import Path

import pytest

from penstock.engine.model.threads import torch_threads, usable_cores

NANO, LARGE = 22 << 20, 28 << 30


@pytest.mark.parametrize(
    ("weights_bytes", "cores", "threads"),
    [
        pytest.param(NANO, 1, 1, id="one-core"),
        pytest.param(NANO, 2, 2, id="two-cores"),
        pytest.param(NANO, 64, 3, id="small-model-on-a-large-machine"),
        pytest.param(LARGE, 2, 2, id="all-of-two-cores"),
        pytest.param(LARGE, 4, 3, id="one-of-four-left"),
        pytest.param(LARGE, 64, 63, id="one-of-64-left"),
        pytest.param(1, 64, 1, id="tiny"),
    ],
)
def test_threads(weights_bytes: int, cores: int, threads: int) -> None:
    assert torch_threads(weights_bytes, cores) == threads


@pytest.mark.parametrize(
    ("text", "most"),
    [("100000 100000\n", 1), ("50000 100000\n", 1), ("max 100000\n", 10**6), ("nonsense", 10**6)],
)
def test_a_containers_quota_counts(text: str, most: int, tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    assert 1 <= usable_cores(quota) <= most
    assert usable_cores(tmp_path / "none") >= usable_cores(quota)
