"""Weights in 4 bits with a scale and a minimum for every 32, from any checkpoint: `int4`.

Each block takes the scale and minimum with the smallest squared error that are found
(`quantise`, kernels/linear/blocks.py); products are those of `gguf`.
"""

from torch import Tensor, nn

from ...errors import ConfigurationError
from ...kernels.linear.blocks import BLOCK_TYPES, QUANTISED, quantise
from ...kernels.linear.native import NativeLinear, Packed
from ...kernels.native.library import Library
from .base import Pack, WeightFormat
from .blocks import BlockLinear, BlockTensor, pack_numbers, stored_bytes

_BLOCK = BLOCK_TYPES[QUANTISED]


class Int4(WeightFormat):
    """For CPUs; weights whose inputs are no multiple of 32 stay as they are."""

    name = "int4"
    row_invariant = True

    def stored_bytes(self, weight: Tensor) -> int:
        """See `WeightFormat`."""
        if not _fits(weight):
            return stored_bytes(weight)
        return weight.numel() // _BLOCK.inputs * _BLOCK.bytes

    def linear(
        self, weight: Tensor, bias: Tensor | None, library: Library | None
    ) -> nn.Module | None:
        """See `WeightFormat`.

        Raises:
            ConfigurationError: the weight is not on a CPU.
        """
        if weight.device.type != "cpu":
            raise ConfigurationError("--quantization int4 is for CPUs; use int8, or --device cpu")
        if not _fits(weight):
            return None
        blocks = BlockTensor.of(quantise(weight), QUANTISED)
        if library is not None:
            return NativeLinear(library, pack_numbers(library, blocks, bias))
        return BlockLinear(blocks, bias)

    def packer(self, library: Library) -> Pack:
        """See `WeightFormat`."""

        def packed(weight: Tensor, bias: Tensor | None) -> Packed:
            blocks = BlockTensor.of(quantise(weight), QUANTISED) if _fits(weight) else weight
            return pack_numbers(library, blocks, bias)

        return packed


def _fits(weight: Tensor) -> bool:
    return weight.shape[1] % _BLOCK.inputs == 0


INT4 = Int4()
