"""Weights in the blocks of a GGUF file, multiplied as they are: `gguf`.

Rows come in 8 bits with a scale for every 32 inputs, as in llama.cpp; weights in floats of 16 bits
are widened, and rows stay as they are (kernels/linear/blocks.h).
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...kernels.linear.native import NativeLinear
from ...kernels.native.library import Library
from .base import Pack, WeightFormat
from .blocks import BlockLinear, BlockTensor, pack_numbers, stored_bytes


class Gguf(WeightFormat):
    """The format of checkpoints whose weights are `BlockTensor`s; other weights are floats."""

    name = "gguf"
    keeps_numbers = True
    row_invariant = True

    def recognises(self, path: Path, fields: Mapping[str, Any]) -> bool:
        """See `WeightFormat`."""
        return path.suffix == ".gguf"

    def stored_bytes(self, weight: Tensor) -> int:
        """See `WeightFormat`."""
        return stored_bytes(weight)

    def linear(
        self, weight: Tensor, bias: Tensor | None, library: Library | None
    ) -> nn.Module | None:
        """See `WeightFormat`."""
        if not isinstance(weight, BlockTensor):
            return None
        if library is None:
            return BlockLinear(weight, bias)
        return NativeLinear(library, pack_numbers(library, weight, bias))

    def packer(self, library: Library) -> Pack:
        """See `WeightFormat`."""
        return partial(pack_numbers, library)


GGUF = Gguf()
