"""Experts of mixtures as compiled products: the rows of a step grouped by the expert that has them.

transformers' modules of experts all have the same attributes (`use_experts_implementation`):
stacked weights, and flags that say how these lie.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from ....kernels.linear.grouped import GroupedLinear
from ....kernels.native.library import Library
from ...weights.base import Pack, WeightFormat
from .replace import replace

logger = logging.getLogger(__name__)

_FLAGS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm")


class CompiledExperts(nn.Module):
    """What a module of experts computes: y = sum over a row's experts of weight * expert(row)."""

    def __init__(self, experts: Any, library: Library, pack: Pack) -> None:
        super().__init__()
        self._up = _grouped(experts, _up_name(experts), library, pack)
        self._down = _grouped(experts, "down_proj", library, pack)
        self._count = len(self._up.packed)
        # Its activation, and parameters of that; the stacked weights are freed.
        self._activation = experts._apply_gate if experts.has_gate else experts.act_fn
        for name in (_up_name(experts), "down_proj"):
            delattr(experts, name)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(each.stored_bytes for of in (self._up, self._down) for each in of.packed)

    @property
    def numbers(self) -> int:
        """How many weights there are."""
        return sum(of.outputs * of.inputs * self._count for of in (self._up, self._down))

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """`[T, H]` of rows `[T, H]`, which have experts `[T, k]` with weights `[T, k]`."""
        chosen = top_k_index.shape[-1]
        experts_S, order = torch.sort(top_k_index.reshape(-1), stable=True)
        starts = torch.searchsorted(experts_S, torch.arange(self._count + 1))
        up = self._up(hidden_states[order // chosen], starts)
        down = self._down(self._activation(up), starts)
        weighted = torch.empty_like(down)
        weighted[order] = down
        weighted = weighted.view(-1, chosen, down.shape[-1]) * top_k_weights[..., None]
        return weighted.sum(dim=1).to(hidden_states.dtype)


def pack_experts(model: nn.Module, library: Library, weights: WeightFormat) -> None:
    """Replace the modules of experts whose products can be compiled, in the weights' format."""
    pack = weights.packer(library)
    if pack is None:
        return

    def packed(module: nn.Module) -> nn.Module | None:
        return CompiledExperts(module, library, pack) if _is_packable(module) else None

    count = replace(model, packed)
    if count:
        logger.info("%d modules of experts packed", count)


def _is_packable(module: Any) -> bool:
    """Whether a module has experts as transformers stacks them, in float32 on a CPU."""
    if not all(hasattr(module, flag) for flag in _FLAGS) or module.has_post_expert_norm:
        return False
    stacked = [getattr(module, name, None) for name in (_up_name(module), "down_proj")]
    return all(
        isinstance(each, Tensor)
        and each.ndim == 3
        and each.dtype == torch.float32
        and each.device.type == "cpu"
        for each in stacked
    )


def _up_name(experts: Any) -> str:
    return "gate_up_proj" if experts.has_gate else "up_proj"


def _grouped(experts: Any, name: str, library: Library, pack: Pack) -> GroupedLinear:
    weights: Tensor = getattr(experts, name)
    biases: Tensor | None = getattr(experts, f"{name}_bias") if experts.has_bias else None
    return GroupedLinear(
        library,
        [
            pack(
                (weight.t() if experts.is_transposed else weight).contiguous(),
                None if biases is None else biases[number],
            )
            for number, weight in enumerate(weights)
        ],
    )
