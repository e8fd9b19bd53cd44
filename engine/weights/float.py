"""Weights as floating-point numbers of the model's dtype: `float`."""

import torch
from torch import Tensor, nn

from ...kernels.linear.native import NativeLinear
from ...kernels.native.library import Library
from .block_format import ExactFormat
from .blocks import BlockTensor, pack_numbers


class Float(ExactFormat):
    """Nothing is converted. In float32 on a CPU, weights are laid out for the compiled products.

    A layer whose weights all have such values is kept in 16 bits, and widened in its products.
    """

    name = "float"
    lossless = True

    def linear(
        self, weight: Tensor, bias: Tensor | None, library: Library | None
    ) -> nn.Module | None:
        """See `WeightFormat`."""
        plain = type(weight) in (Tensor, nn.Parameter, BlockTensor)
        if library is None or weight.dtype != torch.float32 or not plain:
            return None
        return NativeLinear(library, pack_numbers(library, weight, bias))


FLOAT = Float()
