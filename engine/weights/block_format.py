"""Formats whose checkpoints hold weights in blocks, which are multiplied as they are."""

from functools import partial

from torch import Tensor, nn

from ...kernels.linear.native import NativeLinear
from ...kernels.native.library import Library
from .base import Pack, WeightFormat
from .blocks import BlockLinear, BlockTensor, pack_numbers, stored_bytes


class ExactFormat(WeightFormat):
    """Formats whose packed weights are the checkpoint's numbers, to the bit."""

    keeps_numbers = True
    row_invariant = True

    def stored_bytes(self, weight: Tensor) -> int:
        """See `WeightFormat`."""
        return stored_bytes(weight)

    def packer(self, library: Library) -> Pack:
        """See `WeightFormat`."""
        return partial(pack_numbers, library)


class BlockFormat(ExactFormat):
    """The format of checkpoints whose weights are `BlockTensor`s; other weights are floats.

    On CPUs in another dtype than float32 the numbers are floats, too; for GPUs the loader takes the
    blocks apart (planes.py).
    """

    def linear(
        self, weight: Tensor, bias: Tensor | None, library: Library | None
    ) -> nn.Module | None:
        """See `WeightFormat`."""
        if not isinstance(weight, BlockTensor):
            return None
        if library is None:
            return BlockLinear(weight, bias)
        return NativeLinear(library, pack_numbers(library, weight, bias))
