"""Fixtures for all tests: fixed seeds, poisoned memory, and no page left behind."""

import os

# Read when Triton is imported, which transformers does: kernels then run in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.kvcache.pages import PagePool
from tests.tiny import save_tiny
from tests.tiny_composites import COMPOSITES, save_composite
from tests.tiny_pictures import save_pictured

collect_ignore = ["agents"]  # they run elsewhere: make agents

TinyModel = Callable[[str], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the GPU need one, and compiled kernels: `make gpu`."""
    if torch.cuda.is_available() and os.environ["TRITON_INTERPRET"] == "0":
        return
    skip = pytest.mark.skip(reason="needs a CUDA device and TRITON_INTERPRET=0: make gpu")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tiny operations; more threads only wait for each other


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """`torch.empty` gives NaN: whoever reads what nobody wrote will notice."""
    deterministic: Any = torch.utils.deterministic
    fill = deterministic.fill_uninitialized_memory
    algorithms = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    yield
    deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(algorithms)


@pytest.fixture(autouse=True)
def no_page_leaked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every pool that a test makes must end with no page held."""
    pools: list[PagePool] = []
    make = PagePool.__init__

    def noted(self: PagePool, count: int) -> None:
        make(self, count)
        pools.append(self)

    monkeypatch.setattr(PagePool, "__init__", noted)
    yield
    assert [pool.in_use for pool in pools] == [0] * len(pools)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Folder of a tiny random model by architecture, made once a session."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            save = save_composite if kind in COMPOSITES else save_tiny
            made[kind] = save(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return get


@pytest.fixture(scope="session")
def pictured_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Folder of a tiny random model that takes pictures, by architecture, made once a session."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_pictured(kind, tmp_path_factory.mktemp(f"{kind}-pictures"))
        return made[kind]

    return get
