"""Checkpoints in MXFP4: `quant_method` "mxfp4", as gpt-oss is published.

    experts.gate_up_proj_blocks  uint8 [E, N, G, 16]   32 codes of E2M1, the first of two in the
                                                       lower bits
    experts.gate_up_proj_scales  uint8 [E, N, G]       exponents, 127 added

w = 2^(scale - 127) x number(code); the parameter is [E, K, N] (transformers,
integrations/mxfp4.py).
Experts of a mixture are one tensor of three dimensions, which becomes floats.
"""

from typing import Final

import torch
from torch import Tensor

from ..quantization_config import QuantizationFields
from .format import PublishedFormat
from .layers import code_numbers
from .stored import StoredTensors

_BLOCKS: Final = "_blocks"
_SCALES: Final = "_scales"
_BIAS: Final = 127
_MOST: Final = _BIAS + 100


class Mxfp4(PublishedFormat):
    """See the module."""

    name = "mxfp4"
    methods = ("mxfp4",)

    def read(self, config: QuantizationFields, stored: StoredTensors) -> dict[str, Tensor]:
        """See `PublishedFormat`."""
        names = [name.removesuffix(_BLOCKS) for name in stored.ending(_BLOCKS)]
        return {name: _experts(name, stored) for name in names} | stored.rest()


def powers(stored: StoredTensors, name: str, exponents: Tensor) -> Tensor:
    """Float32 scales of uint8 exponents with 127 added.

    Raises:
        ConfigurationError: one is NaN (255), or above 2^100.
    """
    if bool((exponents > _MOST).any()):
        raise stored.wrong(name, "holds NaN or a scale above 2^100: the weights are damaged")
    return torch.ldexp(torch.ones(exponents.shape), exponents.int() - _BIAS)


def _experts(name: str, stored: StoredTensors) -> Tensor:
    blocks_name, scales_name = name + _BLOCKS, name + _SCALES
    blocks = stored.need(blocks_name, of=blocks_name, dtypes=(torch.uint8,))
    if blocks.ndim != 4 or blocks.shape[3] != 16 or not blocks.numel():
        raise stored.wrong(
            blocks_name,
            f"has the shape {list(blocks.shape)}, and [experts, outputs, groups, 16] is expected",
        )  # fmt: skip
    exponents = stored.need(
        scales_name, of=blocks_name, dtypes=(torch.uint8,), shape=blocks.shape[:3]
    )
    scales = powers(stored, scales_name, exponents)
    experts, outputs, groups, _ = blocks.shape
    made = torch.empty(experts, 32 * groups, outputs, dtype=torch.bfloat16)  # exact
    for expert in range(experts):
        pairs = blocks[expert]
        codes = torch.stack((pairs & 15, pairs >> 4), dim=3).flatten(2)
        numbers = code_numbers(codes, "E2M1") * scales[expert][:, :, None]
        made[expert] = numbers.flatten(1).t()
    return made


MXFP4 = Mxfp4()
