"""Merges linear layers, packs them for a CPU, or quantises them, for a whole model at once."""

import logging
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ....kernels.linear.int8 import Int8Linear, fits
from ....kernels.linear.native import NativeLinear, fits_int8, pack, pack_int8
from ....kernels.native.library import Library, library
from .replace import replace

logger = logging.getLogger(__name__)

Quantization = Literal["none", "int8"]

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


def pack_linears(model: nn.Module, library: Library) -> None:
    """Replace the float32 linear layers of a model on a CPU by compiled ones."""

    def packed(module: nn.Module) -> nn.Module | None:
        # GPT-2's kind: the same product with transposed weights.
        if type(module) is Conv1D and module.weight.dtype == torch.float32:
            return NativeLinear(library, pack(library, module.weight.t(), module.bias))
        if not _is_plain(module):
            return None
        return NativeLinear(library, pack(library, module.weight, module.bias))

    logger.info("%d linear layers packed", replace(model, packed))


def quantize_linears(model: nn.Module) -> None:
    """Replace the linear layers of a model by 8-bit ones, where the kernels support their shape."""
    all_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    done_bytes = 0
    parameter = next(model.parameters())
    on_cpu = parameter.device.type == "cpu"
    compiled = usable_library() if on_cpu and parameter.dtype == torch.float32 else None

    def quantised(module: nn.Module) -> nn.Module | None:
        nonlocal done_bytes
        if type(module) is not nn.Linear or not fits(module.weight):
            return None
        done_bytes += module.weight.numel() * module.weight.element_size()
        if compiled is not None and fits_int8(compiled, module.weight):
            return NativeLinear(compiled, pack_int8(compiled, module.weight, module.bias))
        return Int8Linear(module.weight, module.bias)

    count = replace(model, quantised)
    share = done_bytes / max(1, all_bytes)
    level = logging.INFO if share > _WORTH_IT else logging.WARNING
    logger.log(level, "%d linear layers, %.0f %% of the weights, in 8 bits", count, 100 * share)
    in_bytes = compiled is not None and compiled.multiplies_bytes
    if on_cpu and not in_bytes and not multiplies_int8():
        logger.warning(
            "this processor has no instructions for products of 8 bits (VNNI, AMX): "
            "--quantization int8 may be slower than float32 here"
        )


def usable_library() -> Library | None:
    """The compiled kernels; None, with a warning, where there are none, which is slower."""
    found = library()
    if isinstance(found, Library):
        return found
    logger.warning("no compiled kernels, which is slower: %s", found.reason)
    return None


def multiplies_int8() -> bool:
    """Whether the processor multiplies bytes fast, as far as torch can tell: true where unknown."""
    has = torch.cpu.get_capabilities()
    if has.get("architecture") != "x86_64":
        return True
    return any(has.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a plain float32 linear layer: no subclass, no hooks."""
    own = vars(module)
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.dtype == torch.float32
        and not own["_forward_hooks"]
        and not own["_forward_pre_hooks"]
        and "forward" not in own
    )
