"""AWQ checkpoints: `quant_method` "awq", as AutoAWQ writes them for its version "gemm".

    qweight  int32 [K, N / 8]    codes of 4 bits, packed along the outputs
    qzeros   int32 [G, N / 8]    zeros, packed alike
    scales   [G, N]

w = scale x (code - zero). A word holds the outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight, from the
lowest bits on (awq/utils/packing_utils.py, awq/modules/linear/gemm.py).
"""

from functools import partial
from typing import Final

import torch
from torch import Tensor

from ..quantization_config import QuantizationFields
from .format import PublishedFormat
from .layers import Integers, integer_weights, uniform
from .stored import StoredTensors
from .unpack import unpack

_BITS: Final = 4
_PLACES: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in its word the code of each of eight outputs is."""


class Awq(PublishedFormat):
    """See the module."""

    name = "awq"
    methods = ("awq",)

    def read(self, config: QuantizationFields, stored: StoredTensors) -> dict[str, Tensor]:
        """See `PublishedFormat`."""
        config.one_of("bits", (_BITS,), _BITS)
        config.one_of("zero_point", (True,), True)
        config.text("version", ("gemm",), config.get("format", "gemm"))
        size = config.group_size()
        layers = {
            f"{module}.weight": _layer(module, stored, size) for module in stored.modules("qweight")
        }
        return integer_weights(layers) | stored.rest()


def _layer(module: str, stored: StoredTensors, size: int | None) -> Integers:
    """`size`: of a group of inputs; None: all of them."""
    name = f"{module}.qweight"
    codes = stored.need(name, of=name, dtypes=(torch.int32,))
    if codes.ndim != 2 or not codes.numel():
        raise stored.wrong(name, "is no matrix")
    inputs, outputs = codes.shape[0], 8 * codes.shape[1]
    if inputs % (size or inputs):
        raise stored.wrong(name, f"has {inputs} inputs, which group_size ({size}) does not divide")
    groups = inputs // (size or inputs)
    scales = stored.scales(f"{module}.scales", of=name, shape=(groups, outputs))
    zeros = stored.need(
        f"{module}.qzeros", of=name, dtypes=(torch.int32,), shape=(groups, codes.shape[1])
    )
    return Integers(
        codes=partial(_unpacked, codes),
        inputs=inputs,
        bits=_BITS,
        scales=scales.t().contiguous(),
        zeros=uniform(_unpacked(zeros), _BITS),
    )


def _unpacked(words: Tensor) -> Tensor:
    """uint8 `[8 W, R]` of int32 `[R, W]`."""
    found = unpack(words, _BITS, 8 * words.shape[1]).unflatten(1, (-1, 8))
    return found[:, :, list(_PLACES)].flatten(1).t().contiguous()


AWQ = Awq()
