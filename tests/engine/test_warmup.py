"""The warm-up launches every compilation of a kernel that requests need later."""

import inspect
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.engine import build as building
from penstock.engine.model import warmup
from penstock.engine.model.warmup import launch_all, warm_up
from penstock.kernels.backend import TORCH, BackendChoice, load
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, run
from tests.engine.test_eviction_backend import H2O, JOBS, LONG, PARAMS, evicting

attention = pytest.importorskip("penstock.kernels.paged_attention.triton")
scoring = pytest.importorskip("penstock.kernels.scored_attention.triton")
writing = pytest.importorskip("penstock.kernels.kv_write.triton")
sparse = pytest.importorskip("penstock.kernels.sparse_prefill.triton")
evicting_kernel = pytest.importorskip("penstock.kernels.evict.triton")

WRITTEN = ("out_ptr", "lse_ptr", "weights_ptr", "mass_ptr", "scores_ptr")
MANY = [(3 * i) % 250 for i in range(300)]
TREES: dict[str, Any] = {"lookahead": {"window": 3, "ngram": 3, "adaptive": False}}
LINES: dict[str, Any] = {"jacobi": {"window": 3, "adaptive": False}}
ALL = [
    *JOBS,
    Job(prompt=MANY, params=PARAMS, decoding=TREES),
    Job(prompt=[31, 8] * 5, params=PARAMS, decoding=TREES),
    evicting([31, 8] * 5, h2o={**H2O, "heavy": 9}, decoding=TREES),
    evicting(MANY, h2o={**H2O, "heavy": 0.95, "interval": 4}),
    evicting(MANY, h2o={**H2O, "heavy": 300}, decoding=TREES),
    evicting(MANY, h2o={**H2O, "heavy": 300}, decoding=LINES),
    evicting(MANY, window={"recent": 280, "sink": 0}),
]
SPARSE = [
    Job(prompt=prompt, params=PARAMS, decoding={"sparse_prefill": {"recent": 64, **fields}})
    for prompt in (MANY, MANY[:150], MANY[:201])
    for fields in ({"min_tokens": 130}, {"min_tokens": 290, "method": "hash", "buckets": 64})
]


class Recorder:
    """Stands in for a kernel: notes which compilation a launch asks for, and writes zeros."""

    def __init__(self, kernel: Any, noted: set[object]) -> None:
        self._kernel = kernel
        self._noted = noted

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launched(*args: Any, **constants: Any) -> None:
            named = dict(zip(inspect.signature(self._kernel.fn).parameters, args, strict=False))
            general = self._kernel.kwargs.get("do_not_specialize", ())
            kinds = tuple(kind(value, name in general) for name, value in named.items())
            self._noted.add((self._kernel.fn.__name__, kinds, *sorted(constants.items())))
            if self._kernel.fn.__name__ == "choose":
                self._kernel[grid](*args, **constants)
            for name, value in named.items():
                if isinstance(value, Tensor) and name in WRITTEN:
                    value.zero_()

        return launched


def kind(value: object, general: bool) -> object:
    """What Triton compiles anew for: dtypes, alignment, ones and multiples of 16."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if isinstance(value, int):
        return None if general else (value == 1, value % 16 == 0)
    return type(value)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> set[object]:
    """Compilations that were asked for; nothing is interpreted but the choice of victims."""
    found: set[object] = set()
    for module, names in (
        (attention, ("attend", "merge")),
        (scoring, ("masses", "prompt_mass")),
        (writing, ("write",)),
        (sparse, ("attend_lists",)),
        (evicting_kernel, ("choose",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Recorder(getattr(module, name), found))
    return found


@pytest.mark.parametrize(
    ("model", "cache"), [("llama", "int8"), ("gemma2", "auto"), ("gpt_oss", "fp8")]
)
def test_requests_need_nothing_that_was_not_launched(
    model: str, cache: str, tiny_model: TinyModel, noted: set[object]
) -> None:
    settings = {"kv_cache_dtype": cache, "chunk_tokens": 100, "prefix_cache": False}
    built = build(tiny_model(model), attention_backend="triton", **settings)
    assert not noted, "on a CPU nothing is launched at start-up"
    store = built.engine._store  # pyright: ignore[reportPrivateUsage]
    for tensor in store._everything():  # pyright: ignore[reportPrivateUsage]
        tensor.zero_()  # nothing is written, and what is read must be finite
    triton = load(BackendChoice(backend="triton", reason="tested"))
    can = built.loaded.info.sparse_unsupported_reason is None
    launch_all(built.loaded.model, store, triton, built.loaded.device, evicts=True, sparse=can)
    ready = set(noted)
    noted.clear()
    run(built, [*ALL, *(SPARSE if can else [])])
    assert {name for name, *_ in noted} == {  # type: ignore[misc]
        *("attend", "merge", "masses", "prompt_mass", "write", "choose"),
        *(["attend_lists"] if can else []),
    }
    assert noted <= ready


def test_only_compiled_kernels_are_warmed_up(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[object] = []

    def launched(*args: object, **_: object) -> None:
        calls.append(args)

    def asked(*args: Any, **how: Any) -> None:
        calls.append(how)
        warm_up(*args, **how)

    def waited(_: object) -> None:
        calls.append("waited")

    monkeypatch.setattr(warmup, "launch_all", launched)
    monkeypatch.setattr(building, "warm_up", asked)
    monkeypatch.setattr(torch.cuda, "synchronize", waited)
    built = build(tiny_model("llama"), attention_backend="triton")
    assert calls == [{"evicts": True, "sparse": True}]
    calls.clear()
    triton = load(BackendChoice(backend="triton", reason="tested"))
    store = built.engine._store  # pyright: ignore[reportPrivateUsage]
    times = iter([1.0, 3.5])
    with caplog.at_level(logging.INFO):
        for kernels, device in ((TORCH, "cuda"), (triton, "cpu"), (triton, "cuda")):
            warm_up(
                built.loaded.model,
                store,
                kernels,
                torch.device(device),
                lambda: next(times),
                evicts=False,
                sparse=True,
            )
    assert len(calls) == 2
    assert calls[1] == "waited"
    assert "launched in 2.5 s" in caplog.text


def test_a_pool_too_small_for_long_steps_is_no_hindrance(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"), max_model_len=32, kv_cache_memory=4 * 16 * 800)
    store = built.engine._store  # pyright: ignore[reportPrivateUsage]
    assert store.pages * store.page_size < 66
    launch_all(built.loaded.model, store, TORCH, built.loaded.device, evicts=True, sparse=True)


def test_long_contexts_are_among_the_requests() -> None:
    assert len(LONG) > 65
    assert len(MANY) > 256
