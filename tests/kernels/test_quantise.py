"""8-bit elements and their scales: how far they are off, and that a row stands for itself."""

import pytest
import torch

from penstock.kernels.quantise import LARGEST, as_bits, dequantise, quantise

DTYPES = pytest.mark.parametrize("dtype", LARGEST, ids=["int8", "fp8"])


def rows() -> torch.Tensor:
    """Of many magnitudes, some with one element that is far larger than all others."""
    generator = torch.Generator().manual_seed(5)
    found = torch.randn(200, 3, 17, generator=generator)
    found *= 10.0 ** torch.randint(-6, 7, (200, 3, 1), generator=generator)
    found[::7, :, 4] *= 300.0
    return found


def test_int8_is_off_by_half_a_scale_at_most() -> None:
    elements, scales = quantise(rows(), torch.int8)
    assert elements.dtype == torch.int8
    assert scales.dtype == torch.float32
    assert scales.shape == (200, 3, 1)
    error = (dequantise(elements, scales, torch.float32).double() - rows().double()).abs()
    # Beyond half a scale only what float32 rounds: the quotient, and the product.
    assert bool((error <= scales.double() * (0.5 + 127 * 2**-23)).all())
    assert float((error / scales).max()) > 0.49, "the bound is reached"
    assert bool((elements.abs().amax(dim=-1) == 127).all()), "every row uses the whole range"


def test_fp8_is_off_by_a_sixteenth_at_most() -> None:
    elements, scales = quantise(rows(), torch.float8_e4m3fn)
    error = (dequantise(elements, scales, torch.float32).double() - rows().double()).abs()
    bound = torch.maximum(rows().double().abs() / 16, scales.double() / 1024)
    assert bool((error <= bound * (1 + 2**-20)).all())
    assert float((error / bound).max()) > 0.9, "the bound is reached"
    assert bool((elements.float().abs().amax(dim=-1) == 448).all())


def test_fp8_is_read_as_torch_reads_it() -> None:
    every = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)
    numbers = every[~every.float().isnan()]
    assert numbers.shape == (254,)
    assert torch.equal(dequantise(numbers, torch.ones(1), torch.float32), numbers.float())


@DTYPES
def test_a_row_is_the_same_bits_in_any_company(dtype: torch.dtype) -> None:
    elements, scales = quantise(rows(), dtype)
    for i in (0, 7, 113):
        alone, scale = quantise(rows()[i : i + 1, 1:2], dtype)
        assert torch.equal(as_bits(alone), as_bits(elements[i : i + 1, 1:2]))
        assert torch.equal(scale, scales[i : i + 1, 1:2])


@DTYPES
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 3e38], ids=str)
def test_the_ends_of_the_range(value: float, dtype: torch.dtype) -> None:
    row = torch.tensor([[value, -value, 0.0]])
    found = dequantise(*quantise(row, dtype), torch.float32)
    assert float((found - row).abs().max()) <= max(value / 254, 1e-38)


@DTYPES
def test_what_is_stored_of_16_bits_is_what_is_stored_of_the_same_in_32(dtype: torch.dtype) -> None:
    half = rows().bfloat16()
    ours, theirs = quantise(half, dtype), quantise(half.float(), dtype)
    assert torch.equal(as_bits(ours[0]), as_bits(theirs[0]))
    assert torch.equal(ours[1], theirs[1])
    assert dequantise(*ours, torch.bfloat16).dtype == torch.bfloat16
