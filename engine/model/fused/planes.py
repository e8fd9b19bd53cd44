"""Gives the linear layers of a model for a GPU weights that stay in blocks."""

import logging
from collections.abc import Mapping
from importlib.util import find_spec

from torch import Tensor, nn

from ....kernels.native.library import Library, library
from ...weights.blocks import BlockTensor
from ...weights.planes import PlaneLinear, fits_planes
from .replace import replace

logger = logging.getLogger(__name__)


def take_planes(model: nn.Module, tensors: Mapping[str, Tensor]) -> int:
    """Replace linear layers whose weights are in blocks in `tensors`; returns how many there were.

    `tensors`: by the names of parameters. The model is on the CPU, and may be moved afterwards.
    Without Triton, or compiled kernels to take blocks apart, it stays as it is: dequantised.
    """
    found = library()
    if not isinstance(found, Library) or find_spec("triton") is None:
        logger.warning(
            "weights are dequantised: their blocks need Triton and compiled kernels here"
        )
        return 0
    weights = {
        model.get_submodule(name.removesuffix(".weight")): tensor
        for name, tensor in tensors.items()
        if name.endswith(".weight") and fits_planes(tensor) and _is_linear(model, name)
    }

    def planes(module: nn.Module) -> nn.Module | None:
        weight = weights.get(module)
        if not isinstance(weight, BlockTensor):
            return None
        return PlaneLinear(found, weight, module.bias)  # pyright: ignore[reportArgumentType]

    count = replace(model, planes)
    size = sum(each.stored_bytes for each in model.modules() if isinstance(each, PlaneLinear))
    logger.info("%d linear layers keep their blocks: %d MiB", count, size >> 20)
    return count


def count_weights(model: nn.Module) -> int:
    """How many weights a model has, those in planes among them."""
    planes = [each for each in model.modules() if isinstance(each, PlaneLinear)]
    return sum(parameter.numel() for parameter in model.parameters()) + sum(
        each.in_features * each.out_features for each in planes
    )


def _is_linear(model: nn.Module, name: str) -> bool:
    try:
        module = model.get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        return False
    return type(module) is nn.Linear
