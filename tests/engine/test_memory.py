"""How many pages there are, and what a step takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from penstock.decoding.sparse_parameters import SparsePrefillParameters
from penstock.engine.model.memory import pages_of
from penstock.engine.model.profile import DEAREST, longest_prompt, step_bytes
from penstock.errors import ConfigurationError
from penstock.kernels.backend import Backend, BackendChoice, load
from tests.conftest import TinyModel
from tests.engine.jobs import build
from tests.tiny import save_tiny

GIB = 2**30


def pages(budget: float, **changes: int) -> int:
    sizes = {"free_bytes": 64 * GIB, "step_bytes": 4 * GIB, "page_bytes": 2**20}
    return pages_of(budget, **{**sizes, "useful_pages": 10**9, **changes})


@pytest.mark.parametrize(
    ("budget", "changes", "expected"),
    [
        (0.9, {}, 54 * 1024),
        (1.0, {}, 60 * 1024),
        (0.5, {"step_bytes": 0}, 32 * 1024),
        (0.9, {"useful_pages": 100}, 100),
        # Bytes are the caller's word.
        (3 * GIB + 5, {"useful_pages": 100}, 3 * 1024),
        (float(2**20), {"free_bytes": 0}, 1),
        (1.0, {"free_bytes": 4 * GIB + 2**20}, 1),
    ],
)
def test_pages(budget: float, changes: dict[str, int], expected: int) -> None:
    assert pages(budget, **changes) == expected


@pytest.mark.parametrize(
    ("budget", "changes", "words"),
    [
        (0.9, {"free_bytes": 3 * GIB}, "a step takes 4294967296 bytes of the 3221225472"),
        (1.0, {"free_bytes": 4 * GIB}, "lower --max-batch-tokens"),
        (0.5, {"free_bytes": 4 * GIB + 2**20}, "raise --kv-cache-memory"),
        # On a CPU a step is not measured, and its settings would not help.
        (
            0.5,
            {"free_bytes": 2**19, "step_bytes": 0},
            "^524288 bytes of memory are free, .* a page of 1048576; .* with --kv-cache-memory$",
        ),
        (2.0, {}, "holds no page of 1048576 bytes"),
    ],
)
def test_no_room(budget: float, changes: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        pages(budget, **changes)


class LiveBytes(TorchDispatchMode):
    """A meter for any device: every tensor that an operation returns, as long as it lives."""

    def __init__(self) -> None:
        super().__init__()
        self._known: Any = WeakTensorKeyDictionary()
        self._most = 0

    def start(self) -> None:
        self._most = 0

    def peak_bytes(self) -> int:
        return self._most

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, Tensor):
                self._known[one] = one.untyped_storage().nbytes()
        live = {each.untyped_storage().data_ptr(): size for each, size in self._known.items()}
        self._most = max(self._most, sum(live.values()))
        return out


def test_a_step_is_measured_with_all_its_logits(tmp_path: Path) -> None:
    loaded = build(save_tiny("llama", tmp_path, vocab_size=4096)).loaded

    def taken(rows: int, wanted: int) -> int:
        with LiveBytes() as meter:
            return step_bytes(loaded.model, torch.device("cpu"), meter, rows=rows, wanted=wanted)

    logits = loaded.info.vocab_size * 4
    # Logits of all rows: they are float32 already, and there is their softmax.
    assert taken(64, 64) >= 2 * 64 * logits
    assert taken(64, 1) < 64 * logits
    assert taken(128, 1) > 1.5 * taken(64, 1)


@pytest.mark.parametrize("kind", ["torch", "triton"])
def test_a_step_is_measured_with_the_longest_sparse_prompt(kind: Backend, tmp_path: Path) -> None:
    if kind == "triton":
        pytest.importorskip("triton")
    built = build(save_tiny("llama", tmp_path))
    loaded, cpu = built.loaded, torch.device("cpu")
    kernels = load(BackendChoice(backend=kind, reason="tested"))
    (one, *_) = loaded.layers

    def taken(keys: int, form: SparsePrefillParameters = DEAREST) -> int:
        attention = longest_prompt(
            loaded.layers,
            kernels,
            cpu,
            rows=32,
            keys=keys,
            page_size=16,
            dtype=torch.float32,
            form=form,
        )
        with LiveBytes() as meter:
            return step_bytes(loaded.model, cpu, meter, rows=32, wanted=1, attention=attention)

    with LiveBytes() as meter:
        nothing = step_bytes(loaded.model, cpu, meter, rows=32, wanted=1)
    # A layer's keys and values, gathered.
    copies = 512 * one.bytes_per_token(torch.float32)
    assert taken(512) > nothing + copies
    assert taken(1024) - taken(512) > copies
    assert taken(1024) >= taken(1024, SparsePrefillParameters(recent=64))


@pytest.mark.gpu
def test_the_pool_leaves_room_for_the_largest_step(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"), device="cuda", kv_cache_memory=None)
    assert built.engine.pool.count > 0
