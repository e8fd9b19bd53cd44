"""Types of blocks in which weights are kept: their sizes, and the numbers they stand for.

GGUF files have most of them (blocks.h has the formulas); where nothing is compiled, the `gguf`
package reads those. Those of our own hold what other published checkpoints have (own_blocks.py).
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from ..native.library import Library, address, library
from .own_blocks import OWN_TYPES, BlockType, numbers_of

GGML_TYPES: Final[Mapping[str, BlockType]] = {
    "F16": BlockType(1, 1, 2),
    "BF16": BlockType(30, 1, 2),
    "Q4_0": BlockType(2, 32, 18),
    "Q4_1": BlockType(3, 32, 20),
    "Q5_0": BlockType(6, 32, 22),
    "Q5_1": BlockType(7, 32, 24),
    "Q8_0": BlockType(8, 32, 34),
    "Q2_K": BlockType(10, 256, 84),
    "Q3_K": BlockType(11, 256, 110),
    "Q4_K": BlockType(12, 256, 144),
    "Q5_K": BlockType(13, 256, 176),
    "Q6_K": BlockType(14, 256, 210),
    "IQ4_NL": BlockType(20, 32, 18),
    "IQ4_XS": BlockType(23, 256, 136),
}
"""By the names that ggml gives them; of F16 and BF16 a number is a block."""

BLOCK_TYPES: Final[Mapping[str, BlockType]] = {**GGML_TYPES, **OWN_TYPES}

QUANTISED: Final = "Q4_1"
"""What `quantise` makes: 5 bits a weight, with scale and minimum of each block."""

FLOAT_TYPES: Final[Mapping[str, torch.dtype]] = {"F16": torch.float16, "BF16": torch.bfloat16}


def dequantise(raw: Tensor, kind: str, room: Tensor | None = None) -> Tensor:
    """Float32 `[N, K]` of uint8 `[N, bytes of a row]`; in `room`, if it is given."""
    of, found = BLOCK_TYPES[kind], library()
    rows, inputs = raw.shape[0], raw.shape[1] // of.bytes * of.inputs
    numbers = torch.empty(rows, inputs) if room is None else room
    if kind in FLOAT_TYPES:
        return numbers.copy_(raw.contiguous().view(FLOAT_TYPES[kind]))
    if not isinstance(found, Library):
        own = kind in OWN_TYPES
        return numbers.copy_(numbers_of(raw, kind) if own else _without_compiled_code(raw, of))
    raw = raw.contiguous()
    found.call.dequantise(
        of.number, address(raw), rows, inputs, address(numbers), torch.get_num_threads()
    )
    return numbers


def quantise(rows: Tensor) -> Tensor:
    """Blocks of Q4_1, uint8 `[N, bytes of a row]`, of float32 `[N, K]` with K a multiple of 32.

    Their squared errors are the smallest among some scales for each block; without compiled code,
    scales are those of each block's range.
    """
    of, found = BLOCK_TYPES[QUANTISED], library()
    rows = rows.detach().float().contiguous()
    if not isinstance(found, Library):
        import gguf  # pyright: ignore  # see below

        quants: Any = gguf.quants
        number = gguf.GGMLQuantizationType(of.number)
        return torch.from_numpy(quants.quantize(rows.numpy(), number))
    count, inputs = rows.shape
    raw = torch.empty(count, inputs // of.inputs * of.bytes, dtype=torch.uint8)
    found.call.quantise(address(rows), count, inputs, address(raw), torch.get_num_threads())
    return raw


def _without_compiled_code(raw: Tensor, of: BlockType) -> Tensor:
    import gguf  # pyright: ignore  # slow to import, and seldom needed

    quants: Any = gguf.quants
    return torch.from_numpy(quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType(of.number)))
