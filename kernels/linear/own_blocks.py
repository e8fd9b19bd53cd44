"""Blocks of our own types, for the numbers of published checkpoints that no GGUF file has.

    integers   U4_F16, U8_F16    scale in half precision, zero of 8 bits, 32 codes of 4 or 8 bits
               U4_F32, U8_F32    the same, with a scale in float32:  w = scale x (code - zero)
    codes      E4M3_n            scale in float32, n codes of 8 bits:  w = scale x number(code)
               NF4_n, FP4_n, E2M1_n   scale in float32, n codes of 4 bits, by a table of 16 numbers

Of codes of 4 bits a byte holds one of the block's first half and, above it, one of its second.
Numbers are rounded to float32 once. block_types.h and codes.h read the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BlockType:
    """`number`: ggml's, or from 1000 on our own; `inputs` and `bytes` of a block."""

    number: int
    inputs: int
    bytes: int


OWN_TYPES: Final[Mapping[str, BlockType]] = {
    "U4_F16": BlockType(1000, 32, 19),
    "U8_F16": BlockType(1001, 32, 35),
    "U4_F32": BlockType(1002, 32, 21),
    "U8_F32": BlockType(1003, 32, 37),
    "E4M3_32": BlockType(1010, 32, 36),
    "E4M3_128": BlockType(1011, 128, 132),
    "NF4_32": BlockType(1012, 32, 20),
    "NF4_64": BlockType(1013, 64, 36),
    "FP4_32": BlockType(1014, 32, 20),
    "FP4_64": BlockType(1015, 64, 36),
    "E2M1_16": BlockType(1016, 16, 12),
    "E2M1_32": BlockType(1017, 32, 20),
}

TABLES: Final[Mapping[str, Tensor]] = {
    "NF4": torch.tensor(
        [
            -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
            -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
            0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
            0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
        ]
    ),
    "FP4": torch.tensor(
        [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, 0.0, -0.0625, -8, -12, -4, -6, -2, -3]
    ).div_(12.0),
    "E2M1": torch.tensor(
        [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1, -1.5, -2.0, -3.0, -4.0, -6.0]
    ),
}  # fmt: skip
"""What codes of 4 bits stand for: NF4 and FP4 as bitsandbytes has them, E2M1 of MXFP4 and NVFP4."""

INTEGER_INPUTS: Final = 32
"""Inputs of a block of integers."""


def integer_blocks(
    codes: Tensor, scales: Tensor, zeros: Tensor, bits: int, *, wide: bool
) -> Tensor:
    """Rows of U4 (`bits` 4) or U8 (8) blocks, uint8 `[N, bytes of a row]`.

    `codes`: uint8 `[N, K]`; `scales`: of each block, `[N, K / 32]`, kept in float32 if `wide`, and
    else in half precision; `zeros`: uint8, of the same shape.
    """
    parts = codes.unflatten(1, (-1, INTEGER_INPUTS))
    if bits == 4:
        parts = _pairs(parts)
    kept = scales.to(torch.float32 if wide else torch.float16).contiguous()
    return torch.cat([_bytes(kept), zeros[:, :, None], parts], dim=2).flatten(1)


def code_blocks(codes: Tensor, scales: Tensor, kind: str) -> Tensor:
    """Rows of blocks of a type of codes, uint8 `[N, bytes of a row]`.

    `codes`: uint8 `[N, K]`; `scales`: of each block, `[N, K / inputs of a block]`.
    """
    parts = codes.unflatten(1, (-1, OWN_TYPES[kind].inputs))
    if not kind.startswith("E4M3"):
        parts = _pairs(parts)
    return torch.cat([_bytes(scales.float().contiguous()), parts], dim=2).flatten(1)


def numbers_of(raw: Tensor, kind: str) -> Tensor:
    """Float32 `[N, K]` of rows of blocks, uint8 `[N, bytes of a row]`."""
    blocks = raw.unflatten(1, (-1, OWN_TYPES[kind].bytes))
    name, _, width = kind.partition("_")
    dtype = torch.float16 if width == "F16" else torch.float32
    scales = blocks[:, :, : dtype.itemsize].contiguous().view(dtype).float()
    codes = blocks[:, :, dtype.itemsize :]
    if name in ("U4", "U8"):
        zeros, codes = codes[:, :, :1], codes[:, :, 1:]
        codes = _apart(codes) if name == "U4" else codes
        found = codes.int() - zeros.int()
    elif name == "E4M3":
        found = codes.contiguous().view(torch.float8_e4m3fn)
    else:
        found = TABLES[name][_apart(codes).long()]
    return (scales * found.float()).flatten(1)


def _pairs(codes: Tensor) -> Tensor:
    low, high = codes.chunk(2, dim=2)
    return low | high << 4


def _apart(pairs: Tensor) -> Tensor:
    return torch.cat([pairs & 15, pairs >> 4], dim=2)


def _bytes(scales: Tensor) -> Tensor:
    """`[N, blocks]` as uint8 `[N, blocks, bytes]`."""
    return scales[:, :, None].view(torch.uint8)
