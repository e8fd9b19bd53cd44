"""Which kernels serve, and what start-up says of it."""

import importlib.util
import logging
import sys
from typing import Any

import pytest
import torch

from penstock.errors import ConfigurationError
from penstock.kernels import backend
from penstock.kernels.backend import TORCH, BackendChoice, choose, load
from penstock.kernels.native.library import Unavailable

MODEL: dict[str, Any] = {
    "device": torch.device("cpu"),
    "dtype": torch.float32,
    "head_size": 64,
}
NEEDS_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def with_change(change: dict[str, Any]) -> dict[str, Any]:
    return {**MODEL, **change}


def test_torch_is_always_to_be_had() -> None:
    assert choose("torch", **MODEL) == BackendChoice(backend="torch", reason="asked for")
    assert load(choose("torch", **MODEL)) is TORCH


def hopper(device: object) -> tuple[int, int]:
    return 9, 0


CUDA: dict[str, Any] = {"device": torch.device("cuda")}


def test_on_a_cpu_the_compiled_kernels_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("auto", **MODEL) == BackendChoice(backend="native", reason="compiled C++")
    compiled = load(choose("native", **MODEL))
    assert compiled.backend == "native"
    for name in ("paged_attention", "scored_attention", "argmax", "gumbel_argmax"):
        assert getattr(compiled, name) is not getattr(TORCH, name)
    in_half = with_change({"dtype": torch.bfloat16})
    assert choose("auto", **in_half).backend == "torch"
    with pytest.raises(ConfigurationError, match="computes in bfloat16"):
        choose("native", **in_half)
    with pytest.raises(ConfigurationError, match="the device is cuda"):
        choose("native", **with_change(CUDA))
    monkeypatch.setattr(backend, "library", lambda: Unavailable("they are missing"))
    assert choose("auto", **MODEL) == BackendChoice(
        backend="torch", reason="of the compiled kernels, they are missing"
    )


def test_without_triton_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        assert name == "triton"

    monkeypatch.setattr(backend, "find_spec", missing)
    on_cuda = with_change(CUDA)
    assert choose("auto", **on_cuda) == BackendChoice(
        backend="torch", reason="triton is not installed"
    )
    with pytest.raises(ConfigurationError, match="triton is not installed; choose auto or torch"):
        choose("triton", **on_cuda)


@NEEDS_TRITON
def test_an_interpreter_serves_only_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert choose("triton", **MODEL).backend == "triton"
    assert load(choose("triton", **MODEL)).backend == "triton"
    monkeypatch.setattr(torch.cuda, "get_device_capability", hopper)
    assert choose("auto", **with_change(CUDA)).backend == "torch"
    monkeypatch.setattr(backend, "_interpreting", bool)
    with pytest.raises(ConfigurationError, match="the device is cpu"):
        choose("triton", **MODEL)


@NEEDS_TRITON
@pytest.mark.parametrize(
    ("change", "why"),
    [({"dtype": torch.float64}, "float64"), ({"head_size": 512}, "512 elements, more than 256")],
    ids=["dtype", "head-size"],
)
def test_what_kernels_cannot_do(
    change: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", hopper)
    assert why in choose("auto", **with_change(CUDA | change)).reason
    with pytest.raises(ConfigurationError, match=why):
        choose("triton", **with_change(change))


@NEEDS_TRITON
@pytest.mark.parametrize(
    ("capability", "found"), [((9, 0), "triton"), ((7, 5), "torch")], ids=["hopper", "turing"]
)
def test_on_a_gpu_triton_serves_where_it_can(
    capability: tuple[int, int], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(_: object) -> tuple[int, int]:
        return capability

    def name(_: object) -> str:
        return "a GPU"

    monkeypatch.setattr(backend, "_interpreting", bool)
    monkeypatch.setattr(torch.cuda, "get_device_capability", get)
    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    choice = choose("auto", **with_change({"device": torch.device("cuda")}))
    assert choice.backend == found
    assert choice.reason


def test_nobody_imports_triton_for_torch() -> None:
    """In a process of its own: in this one tests have imported the kernels."""
    import subprocess

    code = (
        "import sys\n"
        "import penstock.kernels.backend, penstock.kernels.paged_attention.ragged\n"
        "import penstock.kernels.paged_attention.tiles\n"
        "print([name for name in sys.modules if name.startswith('penstock') and 'triton' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_start_up_says_which(caplog: pytest.LogCaptureFixture) -> None:
    from tests.engine.jobs import build

    with caplog.at_level(logging.INFO):
        build(None, attention_backend="torch")
    assert "attention backend: torch (asked for)" in caplog.text
