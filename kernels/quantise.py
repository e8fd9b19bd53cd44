"""Keys and values in other types than the model's: in 8 bits with a scale for each token and head.

    scale = max_i |x_i| / largest;   e_i = rounded(x_i / scale);   x_i is read as scale * e_i

`largest` is 127 for int8, so that no element is off by more than scale / 2, and 448 for fp8 (e4m3,
three bits of mantissa), so that none is off by more than |x_i| / 16 or scale / 1024. What is stored
of a row depends on nothing but the row.
"""

from typing import Final

import torch
from torch import Tensor

from .batch import ShortGroup, Span

LARGEST: Final = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The types that come with scales, and their largest number."""
SCALE_DTYPE: Final = torch.float32
LEAST_SCALE: Final = torch.finfo(SCALE_DTYPE).tiny


def quantise(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Elements `[..., D]` of `dtype`, one of `LARGEST`, and their scales, float32 `[..., 1]`.

    Rows of zeros stay zeros.
    """
    rows = rows.to(SCALE_DTYPE)
    scales = rows.abs().amax(dim=-1, keepdim=True).div_(LARGEST[dtype]).clamp_(min=LEAST_SCALE)
    elements = rows / scales
    return (elements if dtype.is_floating_point else elements.round_()).to(dtype), scales


def dequantise(elements: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The numbers `[..., D]` that are stored, in `dtype`; scales `[..., 1]`, or none."""
    if scales is None:
        return elements.to(dtype)
    if elements.dtype == torch.float8_e4m3fn:
        return _times_2_to_the_minus_8(elements).mul_(scales * 256.0).to(dtype)
    return elements.to(SCALE_DTYPE).mul_(scales).to(dtype)


def _times_2_to_the_minus_8(elements: Tensor) -> Tensor:
    """fp8 as float32, read as float16 with the same bits: its exponents are biased by 8 more.

    Exact for all that `quantise` makes. On a CPU torch converts fp8 one element after another, at
    ten times the cost (1,024 x 2 x 64 elements: 32 us so, 408 us by `to`).
    """
    # The sign is in front of the exponent again when the copy of it behind has been cleared.
    bits = elements.view(torch.int8).to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~0x4000)
    return bits.view(torch.float16).to(SCALE_DTYPE)


def as_bits(elements: Tensor) -> Tensor:
    """fp8 as bytes, the same memory: torch copies those by index on every device."""
    return elements.view(torch.uint8) if elements.dtype == torch.float8_e4m3fn else elements


def read(
    at: Span | ShortGroup,
    cache: Tensor,
    scales: Tensor | None,
    dtype: torch.dtype,
    first: int = 0,
) -> Tensor:
    """`at.keys(cache)` in `dtype`, from the first key wanted on: as it is where that is its own."""
    if cache.dtype == dtype:
        keys = at.keys(cache)
        return keys[..., first:, :] if first else keys
    elements = at.keys(as_bits(cache))[..., first:, :].view(cache.dtype)
    return dequantise(elements, None if scales is None else at.keys(scales)[..., first:, :], dtype)
