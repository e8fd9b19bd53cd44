"""RMS normalisation in four operations; transformers' modules take eight."""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from .observe import Call, matches


class FusedRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in x's own precision.

    Written as x / hypot(|x|, sqrt(eps n)) * (weight sqrt(n)), since the length of a vector
    is one operation, and the mean of its squares is two.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        size = weight.shape[-1]
        self.eps = eps
        self.scaled_weight = weight.detach() * math.sqrt(size)
        self.floor = torch.tensor(math.sqrt(eps * size), dtype=weight.dtype, device=weight.device)

    @property
    def weight(self) -> Tensor:
        """The factors, `[n]`; some modules ask for their dtype."""
        return self.scaled_weight / math.sqrt(self.scaled_weight.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., n]`."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x / torch.hypot(length, self.floor)).mul_(self.scaled_weight)

    def reordered(self, order: Tensor) -> Self:
        """The same normalisation of vectors whose elements were permuted by `order`."""
        size = self.scaled_weight.shape[-1]
        return type(self)(self.scaled_weight[order] / math.sqrt(size), self.eps)


def fused_norm(module: nn.Module, call: Call | None) -> FusedRMSNorm | None:
    """The fused version of an RMS norm, if `module` is one; tried on a recorded call."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if call is None or not isinstance(weight, Tensor) or weight.ndim != 1:
        return None
    if (
        not isinstance(eps, float)
        or _has_children(module)
        or getattr(module, "bias", None) is not None
    ):
        return None
    x: Any = call.args[0] if call.args else None
    if not isinstance(x, Tensor) or x.shape[-1] != weight.shape[0]:
        return None
    # Gemma stores its weights minus one.
    for effective in (weight, 1 + weight):
        candidate = FusedRMSNorm(effective, eps)
        if matches(candidate, module, call):
            return candidate
    return None


def _has_children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None
