"""Weights in blocks taken apart, as the Triton kernel multiplies them (planes.h, triton.py).

    w = scale x (number(code) - zero) + least

`number` is the code itself, what a table of 16 says of it, or an e4m3 float of 8 bits. The numbers
are those of the blocks, to the bit.
"""

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from ..native.library import Library, address
from .blocks import BLOCK_TYPES
from .own_blocks import TABLES

_SHARED: Final = 16
_E4M3_SCALE: Final = 256.0
"""The kernel reads e4m3 as half precision of other exponents: 2^-8 times the number."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Planes:
    """Weights `[N, K]`. `is_paired`: a byte has two codes of 4 bits, of inputs 2i and 2i + 1.

    codes: uint8 `[N, K]` or `[N, K / 2]`. scales, zeros, leasts: float `[N, K / shared]`; None: all
    zeros are 0, all leasts are 0. table: float32 `[16]`; is_e4m3: codes are floats of 8 bits.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    leasts: Tensor | None
    table: Tensor | None
    is_paired: bool
    is_e4m3: bool
    shared: int

    @property
    def inputs(self) -> int:
        """K."""
        return self.scales.shape[1] * self.shared

    @property
    def outputs(self) -> int:
        """N."""
        return self.codes.shape[0]


def planes_of(library: Library, raw: Tensor, kind: str) -> Planes:
    """Take apart rows of blocks, uint8 `[N, bytes of a row]`, of a type of `BLOCK_TYPES`.

    Raises:
        ValueError: numbers of this type are floats, and no codes.
    """
    of = BLOCK_TYPES[kind]
    if of.inputs == 1:
        raise ValueError(f"{kind} has no codes")
    rows, inputs = raw.shape[0], raw.shape[1] // of.bytes * of.inputs
    raw = raw.contiguous()
    codes = torch.empty(rows, inputs, dtype=torch.uint8)
    scales, zeros, leasts = (torch.empty(rows, inputs // _SHARED) for _ in range(3))
    library.call.planes(
        of.number,
        address(raw),
        rows,
        inputs,
        *(address(tensor) for tensor in (codes, scales, zeros, leasts)),
        torch.get_num_threads(),
    )
    name = kind.partition("_")[0]
    is_e4m3 = name == "E4M3"
    is_paired = bool(codes.max() < _SHARED) if codes.numel() else False
    return _smaller(
        Planes(
            codes=codes[:, 0::2] | codes[:, 1::2] << 4 if is_paired and not is_e4m3 else codes,
            scales=scales * _E4M3_SCALE if is_e4m3 else scales,
            zeros=zeros if zeros.any() else None,
            leasts=leasts if leasts.any() else None,
            table=TABLES.get(name),
            is_paired=is_paired and not is_e4m3,
            is_e4m3=is_e4m3,
            shared=_SHARED,
        )
    )


def _smaller(planes: Planes) -> Planes:
    """The same with numbers shared by as many inputs as share them, and in 16 bits where exact."""
    parts = {"scales": planes.scales, "zeros": planes.zeros, "leasts": planes.leasts}
    given = {name: part for name, part in parts.items() if part is not None}
    shared = planes.shared
    while planes.scales.shape[1] * planes.shared % (2 * shared) == 0 and all(
        torch.equal(part[:, 0::2], part[:, 1::2]) for part in given.values()
    ):
        shared *= 2
        given = {name: part[:, 0::2] for name, part in given.items()}
    halves = {name: part.half() for name, part in given.items()}
    kept = {
        name: halves[name] if torch.equal(halves[name].float(), part) else part.contiguous()
        for name, part in given.items()
    }
    return replace(planes, **kept, shared=shared)
