"""Merges linear layers, and gives those of a whole model to the format of its weights."""

import logging
from typing import TypeGuard

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ....kernels.native.library import Library, library
from ...weights.base import WeightFormat
from ...weights.blocks import stored_bytes
from ...weights.float import FLOAT
from .replace import replace

logger = logging.getLogger(__name__)

_WORTH_IT = 0.5


def merged(weights: list[Tensor], biases: list[Tensor | None]) -> nn.Linear:
    """One linear layer whose outputs are those of several, concatenated."""
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


def store_linears(model: nn.Module, weights: WeightFormat, library: Library | None) -> int:
    """Replace linear layers by those of a format, where it has one; returns how many it took."""
    parameters = list(model.parameters())
    all_bytes = sum(map(stored_bytes, parameters))
    before_bytes = after_bytes = 0

    def stored(module: nn.Module) -> nn.Module | None:
        nonlocal before_bytes, after_bytes
        if not _is_plain(module):
            return None
        weight = module.weight
        found = weights.linear(weight, module.bias, library)
        if found is not None:
            before_bytes += stored_bytes(weight)
            after_bytes += weights.stored_bytes(weight)
        return found

    count = replace(model, stored)
    if not count and (weights.lossless or weights.keeps_numbers):
        return count
    share = before_bytes / max(1, all_bytes)
    logger.log(
        logging.INFO if weights.lossless or share > _WORTH_IT else logging.WARNING,
        "%d linear layers, %.0f %% of the weights, in %s: %d MiB",
        count,
        100 * share,
        weights.name,
        after_bytes >> 20,
    )
    slow = weights.slow_reason(parameters[0].device, library)
    if slow is not None:
        logger.warning("%s: --quantization %s may be slower than float32 here", slow, weights.name)
    return count


def pack_linears(model: nn.Module, library: Library) -> None:
    """Lay out the float32 linear layers that are left, GPT-2's kind among them."""

    def packed(module: nn.Module) -> nn.Module | None:
        if _is_plain(module):
            return FLOAT.linear(module.weight, module.bias, library)
        if type(module) is Conv1D:  # the same product with transposed weights
            return FLOAT.linear(module.weight.t(), module.bias, library)
        return None

    count = replace(model, packed)
    if count:
        logger.info("%d linear layers packed", count)


def usable_library() -> Library | None:
    """The compiled kernels; None, with a warning, where there are none, which is slower."""
    found = library()
    if isinstance(found, Library):
        return found
    logger.warning("no compiled kernels, which is slower: %s", found.reason)
    return None


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a plain linear layer: no subclass, no hooks, weights only it reads."""
    own = vars(module)
    return (
        type(module) is nn.Linear
        and not own["_forward_hooks"]
        and not own["_forward_pre_hooks"]
        and "forward" not in own
        and "penstock_keeps_weight" not in own
    )
