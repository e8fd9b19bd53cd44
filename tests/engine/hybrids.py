"""Models with states beside keys and values, tiny and random; their states begin as NaN."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.kvcache.state_pool import StatePool
from penstock.kvcache.state_store import StateStore
from tests.sweep.tiny_models import make

HYBRIDS = (
    *("qwen3_5_text", "qwen3_next", "kimi_linear", "olmo_hybrid", "bailing_hybrid"),
    *("nemotron_h", "granitemoehybrid", "falcon_h1", "bamba", "zamba2"),
    *("jamba", "lfm2", "lfm3"),
    *("mamba", "mamba2", "falcon_mamba"),
)
"""Gated delta rules; Mamba 2 beside attention; Mamba and short convolutions beside it; no attention
at all."""


@pytest.fixture(scope="session")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function: kind -> folder of a tiny checkpoint, made once."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            make(kind, made[kind])
        return made[kind]

    return folder


@pytest.fixture(autouse=True)
def poisoned_states(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slots begin as NaN, and every pool must end with no slot held."""
    pools: list[StatePool] = []
    make_store, make_pool = StateStore.__init__, StatePool.__init__

    def poisoned(self: StateStore, *args: Any, **kwargs: Any) -> None:
        make_store(self, *args, **kwargs)
        for tensor in self.tensors.values():
            tensor.fill_(torch.nan)

    def noted(self: StatePool, *args: Any, **kwargs: Any) -> None:
        make_pool(self, *args, **kwargs)
        pools.append(self)

    monkeypatch.setattr(StateStore, "__init__", poisoned)
    monkeypatch.setattr(StatePool, "__init__", noted)
    yield
    for pool in pools:
        assert pool.in_use == 0, "a sequence that ended still holds a slot"
        assert pool.free + pool.snapshots == pool.store.slots, "a slot is lost"
