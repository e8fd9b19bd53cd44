"""Linear layers merged, packed for a CPU, or quantised: every `nn.Linear` of a model at once."""

import logging
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn

from ...kernels.linear.int8 import Int8Linear, fits
from ...kernels.linear.packed import PackedLinear, choose, is_available, measure
from ..memory import free_bytes
from .replace import replace

logger = logging.getLogger(__name__)

Quantization = Literal["none", "int8"]

_SHARE_OF_MEMORY = 0.25
"""Two copies of the weights are kept if they take no more of the available memory than this."""
_WORTH_IT = 0.5
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
    weights = [m.weight for m in model.modules() if _is_plain(m)]
    weights_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    one_layout = weights_bytes > _SHARE_OF_MEMORY * free_bytes(torch.device("cpu"))
    times_s = measure(_sample(weights))
    del weights
    choices = {shape: choose(times, one_layout=one_layout) for shape, times in times_s.items()}
    for shape, choice in choices.items():
        logger.debug("linear layers of %d x %d: %s", *shape, ", ".join(choice))

    def packed(module: nn.Module) -> nn.Module | None:
        if not _is_plain(module):
            return None
        return PackedLinear(module.weight, module.bias, choices[module.weight.shape])

    count = replace(model, packed)
    logger.info("%d linear layers of %d shapes packed", count, len(choices))


def quantize_linears(model: nn.Module) -> None:
    """Replace the linear layers of a model by 8-bit ones, where the kernels take their shape."""
    all_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    done_bytes = 0

    def quantised(module: nn.Module) -> nn.Module | None:
        nonlocal done_bytes
        if type(module) is not nn.Linear or not fits(module.weight):
            return None
        done_bytes += module.weight.numel() * module.weight.element_size()
        return Int8Linear(module.weight, module.bias)

    count = replace(model, quantised)
    share = done_bytes / max(1, all_bytes)
    level = logging.INFO if share > _WORTH_IT else logging.WARNING
    logger.log(level, "%d linear layers, %.0f %% of the weights, in 8 bits", count, 100 * share)
    if next(model.parameters()).device.type == "cpu" and not multiplies_int8():
        logger.warning(
            "this processor has no instructions for products of 8 bits (VNNI, AMX): "
            "--quantization int8 may be slower than float32 here"
        )


def multiplies_int8() -> bool:
    """Whether the processor multiplies bytes fast, as far as torch can tell: true where unknown."""
    has = torch.cpu.get_capabilities()
    if has.get("architecture") != "x86_64":
        return True
    return any(has.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear layer in float32 and nothing besides."""
    own = vars(module)
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.dtype == torch.float32
        and not own["_forward_hooks"]
        and not own["_forward_pre_hooks"]
        and "forward" not in own
    )


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
