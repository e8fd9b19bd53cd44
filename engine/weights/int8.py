"""Weights and activations in 8 bits, from a checkpoint of floating-point numbers: `int8`.

kernels/linear/int8.py has the formula.
"""

import torch
from torch import Tensor, nn

from ...kernels.linear.int8 import Int8Linear, fits
from ...kernels.linear.native import NativeLinear, Packed, fits_int8, pack, pack_int8
from ...kernels.native.library import Library
from .base import Pack, WeightFormat
from .blocks import stored_bytes

_SCALE_BYTES = 4


class Int8(WeightFormat):
    """A scale for each output; weights of other shapes than the kernels take stay as they are."""

    name = "int8"
    row_invariant = True

    def stored_bytes(self, weight: Tensor) -> int:
        """See `WeightFormat`."""
        if not fits(weight):
            return stored_bytes(weight)
        return weight.numel() + weight.shape[0] * _SCALE_BYTES

    def linear(
        self, weight: Tensor, bias: Tensor | None, library: Library | None
    ) -> nn.Module | None:
        """See `WeightFormat`."""
        if not fits(weight):
            return None
        if library is not None and fits_int8(library, weight):
            return NativeLinear(library, pack_int8(library, weight, bias))
        return Int8Linear(weight, bias)

    def packer(self, library: Library) -> Pack | None:
        """See `WeightFormat`."""
        if not library.multiplies_bytes:
            return None

        def packed(weight: Tensor, bias: Tensor | None) -> Packed:
            how = pack_int8 if fits_int8(library, weight) else pack
            return how(library, weight, bias)

        return packed

    def slow_reason(self, device: torch.device, library: Library | None) -> str | None:
        """See `WeightFormat`."""
        compiled = library is not None and library.multiplies_bytes
        if device.type != "cpu" or compiled or _multiplies_bytes():
            return None
        return "this processor has no instructions for products of 8 bits (VNNI, AMX)"


def _multiplies_bytes() -> bool:
    """Whether the processor multiplies bytes fast, as far as torch can tell: true where unknown."""
    has = torch.cpu.get_capabilities()
    if has.get("architecture") != "x86_64":
        return True
    return any(has.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


INT8 = Int8()
