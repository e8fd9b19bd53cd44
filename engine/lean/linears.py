"""Linear layers merged, packed for a CPU, or quantised: every `nn.Linear` of a model at once."""

import logging
from typing import Literal

import psutil
import torch
from torch import Tensor, nn

from ...kernels.linear.int8 import Int8Linear, fits
from ...kernels.linear.packed import PackedLinear, choose, is_available, measure
from .replace import replace

logger = logging.getLogger(__name__)

Quantization = Literal["none", "int8"]

_SHARE_OF_MEMORY = 0.25
"""Two copies of the weights are kept if they take no more of the available memory than this."""
_SAMPLE_BYTES = 128 << 20
"""Weights of so many bytes are tried: more than most caches hold."""


def merged(weights: list[Tensor], biases: list[Tensor | None]) -> nn.Linear:
    """One linear layer whose outputs are those of several, one after the other."""
    weight = torch.cat(weights)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if any(bias is not None for bias in biases):
        filled = [
            weight.new_zeros(rows.shape[0]) if bias is None else bias
            for rows, bias in zip(weights, biases, strict=True)
        ]
        layer.bias = nn.Parameter(torch.cat(filled), requires_grad=False)
    return layer


def pack_linears(model: nn.Module) -> None:
    """Replace the float32 linear layers of a model on a CPU by ones that pick their kernel."""
    if not is_available():
        return
    layers = [m for m in model.modules() if type(m) is nn.Linear]
    weights_bytes = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    one_layout = weights_bytes > _SHARE_OF_MEMORY * psutil.virtual_memory().available
    times_s = measure(_sample([layer.weight for layer in layers]))
    choices = {shape: choose(times, one_layout=one_layout) for shape, times in times_s.items()}
    for shape, choice in choices.items():
        logger.debug("linear layers of %d x %d: %s", *shape, ", ".join(choice))

    def packed(module: nn.Module) -> nn.Module | None:
        if type(module) is not nn.Linear:
            return None
        return PackedLinear(module.weight, module.bias, choices[module.weight.shape])

    count = replace(model, packed)
    logger.info("%d linear layers of %d shapes packed", count, len(choices))


def _sample(weights: list[Tensor]) -> list[Tensor]:
    """The first layers of a model, and at least one of each shape."""
    chosen: list[Tensor] = []
    shapes: set[torch.Size] = set()
    size_bytes = 0
    for weight in weights:
        if size_bytes < _SAMPLE_BYTES or weight.shape not in shapes:
            chosen.append(weight)
            shapes.add(weight.shape)
            size_bytes += weight.numel() * weight.element_size()
    return chosen


def quantize_linears(model: nn.Module) -> None:
    """Replace the linear layers of a model by 8-bit ones, where the kernels take their shape."""
    left = 0

    def quantised(module: nn.Module) -> nn.Module | None:
        nonlocal left
        if type(module) is not nn.Linear:
            return None
        if not fits(module.weight):
            left += 1
            return None
        return Int8Linear(module.weight, module.bias)

    count = replace(model, quantised)
    logger.info("%d linear layers in 8 bits, %d left as they were", count, left)
