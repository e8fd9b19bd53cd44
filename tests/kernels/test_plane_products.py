"""Planes hold the numbers of their blocks, and Triton's products are those of the numbers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from penstock.kernels.linear.blocks import BLOCK_TYPES, FLOAT_TYPES, dequantise
from penstock.kernels.linear.planes import Planes, planes_of
from penstock.kernels.linear.triton import plane_linear
from penstock.kernels.native.library import Library, library
from tests.kernels.test_blocks import random_blocks

KINDS = [kind for kind in BLOCK_TYPES if kind not in FLOAT_TYPES]
TYPES = [torch.float32, torch.float16]  # of bfloat16 the interpreter computes no products
GPU_TYPES = [*TYPES, torch.bfloat16]
ROUNDING = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
OUTPUTS, INPUTS = 70, 512


def taken_apart(kind: str, rows: int = OUTPUTS) -> tuple[Planes, Tensor]:
    """Planes of random blocks, and the numbers of these."""
    found = library()
    if not isinstance(found, Library):
        pytest.skip(found.reason)
    raw = random_blocks(kind, rows, INPUTS)
    return planes_of(found, raw, kind), dequantise(raw, kind)


def numbers(planes: Planes) -> Tensor:
    """What planes stand for, by their formula."""
    codes = planes.codes
    if planes.is_paired:
        codes = torch.stack((codes & 15, codes >> 4), dim=2).flatten(1)
    if planes.is_e4m3:
        found = codes.view(torch.float8_e4m3fn).float() / 256
    else:
        found = codes.float() if planes.table is None else planes.table[codes.long()]

    def spread(part: Tensor | None) -> Tensor | float:
        return 0.0 if part is None else part.float().repeat_interleave(planes.shared, dim=1)

    return (found - spread(planes.zeros)) * spread(planes.scales) + spread(planes.leasts)


@pytest.mark.parametrize("kind", KINDS)
def test_planes_hold_the_numbers(kind: str) -> None:
    planes, expected = taken_apart(kind)
    assert torch.equal(numbers(planes), expected)
    assert (planes.inputs, planes.outputs) == (INPUTS, OUTPUTS)
    assert planes.scales.numel() * planes.shared == OUTPUTS * INPUTS


def test_planes_are_small() -> None:
    four, _ = taken_apart("Q4_0")
    assert (four.is_paired, four.shared, four.scales.dtype) == (True, 32, torch.float16)
    assert four.leasts is None
    floats, _ = taken_apart("E4M3_128")
    assert (floats.is_e4m3, floats.shared, floats.zeros) == (True, 128, None)


def test_floats_have_no_codes() -> None:
    found = library()
    if not isinstance(found, Library):
        pytest.skip(found.reason)
    with pytest.raises(ValueError, match="no codes"):
        planes_of(found, random_blocks("F16", 2, 32), "F16")


def check_products(kind: str, dtype: torch.dtype, device: str) -> None:
    planes, weights = taken_apart(kind)
    parts = {
        name: part.to(device)
        for name in ("codes", "scales", "zeros", "leasts", "table")
        if (part := getattr(planes, name)) is not None
    }
    planes = replace(planes, **parts)
    weights = weights.to(device, dtype).double()
    bias = torch.randn(OUTPUTS).to(device, dtype)
    x = torch.randn(3, 6, INPUTS).to(device, dtype)
    expected = x.double() @ weights.t()
    scale = x.double().abs() @ weights.abs().t()
    # Sums in float32, rounded once.
    bound = 2e-6 * scale + ROUNDING[dtype] * expected.abs()
    found = plane_linear(x, planes, None)
    assert found.dtype == dtype
    assert ((found.double() - expected).abs() <= bound).all()
    biased = expected + bias.double()
    error = (plane_linear(x, planes, bias).double() - biased).abs()
    assert (error <= 2e-6 * scale + ROUNDING[dtype] * biased.abs()).all()
    alone = plane_linear(x[1, 2:3], planes, None)
    torch.testing.assert_close(alone[0], found[1, 2], rtol=1e-3, atol=1e-3)
    assert plane_linear(x[:0], planes, None).shape == (0, 6, OUTPUTS)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q6_K", "IQ4_NL", "U4_F16", "E4M3_128", "NF4_64"])
def test_products(kind: str, dtype: torch.dtype) -> None:
    check_products(kind, dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", GPU_TYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_products_on_a_gpu(kind: str, dtype: torch.dtype) -> None:
    check_products(kind, dtype, "cuda")
