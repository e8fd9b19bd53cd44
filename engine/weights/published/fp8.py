"""Checkpoints in 8-bit floats: `quant_method` "fp8" (DeepSeek, Qwen, AutoFP8) and "fbgemm_fp8".

    weight            E4M3 [N, K]
    weight_scale_inv  of blocks of `weight_block_size`: [ceil(N / rows), ceil(K / columns)]; or one
    weight_scale      the same; or [N, 1]: of each output

w = scale x number, whatever the name of the scale (transformers, integrations/finegrained_fp8.py
and fbgemm_fp8.py). Scales of activations are not used: rows stay in float32.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from ....validation import show
from ..quantization_config import LARGEST, QuantizationFields
from .format import PublishedFormat
from .layers import code_weight
from .stored import StoredTensors

_SCALES: Final = ("weight_scale_inv", "weight_scale")
_UNUSED: Final = ("input_scale", "activation_scale", "input_scale_ub", "output_scale")
_CACHES: Final = ("k_scale", "v_scale", "q_scale")


class Fp8(PublishedFormat):
    """See the module."""

    name = "fp8"
    methods = ("fp8", "fbgemm_fp8")

    def read(self, config: QuantizationFields, stored: StoredTensors) -> dict[str, Tensor]:
        """See `PublishedFormat`."""
        config.text("fmt", ("e4m3",), "e4m3")
        block = block_size(config, "weight_block_size")
        found: dict[str, Tensor] = {}
        for scale in _SCALES:
            for module in stored.modules(scale):
                found[f"{module}.weight"] = _layer(module, scale, stored, block)
        drop_activations(stored)
        return found | stored.rest()


def block_size(config: QuantizationFields, field: str) -> tuple[int, int] | None:
    """Rows and columns that share a scale; None: there are no blocks.

    Raises:
        ConfigurationError: they are not two sizes.
    """
    value: Any = config.get(field)
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != 2
        or any(type(each) is not int or not 1 <= each <= LARGEST for each in value)
    ):
        raise config.wrong(field, f"is {show(value)}, and a list of two sizes is expected")
    return value[0], value[1]


def drop_activations(stored: StoredTensors) -> None:
    """Take what is about activations and caches, which stay as they are here."""
    for part in (*_UNUSED, *_CACHES, "input_zero_point", "output_zero_point", "input_global_scale"):
        stored.drop([f"{module}.{part}" for module in stored.modules(part)])


def numbers(stored: StoredTensors, name: str) -> Tensor:
    """Codes of E4M3, uint8 `[N, K]`, of the weight called `name`.

    Raises:
        ConfigurationError: it is missing, or no matrix of such codes; or one is NaN.
    """
    weight = stored.need(name, of=name, dtypes=(torch.float8_e4m3fn,))
    if weight.ndim != 2 or not weight.numel():
        raise stored.wrong(name, "is no matrix")
    codes = weight.contiguous().view(torch.uint8)
    if bool(((codes & 127) == 127).any()):
        raise stored.wrong(name, "holds NaN: the weights are damaged")
    return codes


def spread(
    stored: StoredTensors, name: str, scales: Tensor, shape: Sequence[int], block: tuple[int, int]
) -> Tensor:
    """Scales `[N, G]` of equal runs of inputs, from those of blocks of rows and columns.

    `shape`: N and K.

    Raises:
        ConfigurationError: there are not as many as there are blocks.
    """
    (rows, columns), (outputs, inputs) = block, shape
    grid = [-(-outputs // rows), -(-inputs // columns)]
    if list(scales.shape) != grid:
        raise stored.wrong(name, f"has the shape {list(scales.shape)}, and {grid} is expected")
    rows, columns = min(rows, outputs), min(columns, inputs)
    run = math.gcd(columns, inputs)
    by_output = scales.float().repeat_interleave(rows, dim=0)[:outputs]
    return by_output.repeat_interleave(columns // run, dim=1)[:, : inputs // run]


def _layer(module: str, part: str, stored: StoredTensors, block: tuple[int, int] | None) -> Tensor:
    scale_name, name = f"{module}.{part}", f"{module}.weight"
    if not stored.has(name):
        raise stored.wrong(scale_name, "has no weight beside it")
    codes = numbers(stored, name)
    scales = stored.scales(scale_name, of=name, more=(torch.float8_e8m0fnu,)).float()
    outputs, inputs = codes.shape
    if scales.numel() == 1:
        scales = scales.reshape(1, 1).expand(outputs, 1)
    elif block is not None:
        scales = spread(stored, scale_name, scales, (outputs, inputs), block)
    elif scales.shape in ((outputs, 1), (outputs,)):
        scales = scales.reshape(outputs, 1)
    else:
        raise stored.wrong(
            scale_name,
            f"has the shape {list(scales.shape)}, and [1] or [{outputs}, 1] is expected where "
            "weight_block_size is missing",
        )
    return code_weight(codes, scales, "E4M3")


FP8 = Fp8()
