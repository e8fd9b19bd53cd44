"""Linear layers on a GPU whose weights stay in blocks, taken apart into planes (kernels/linear)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.linear.blocks import FLOAT_TYPES
from ...kernels.linear.planes import Planes, planes_of
from ...kernels.native.library import Library
from .blocks import BlockTensor


class PlaneLinear(nn.Module):
    """y = x W^T + b in x's type, by Triton; W is rounded to that type as it is decoded."""

    def __init__(self, library: Library, weight: BlockTensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._parts = [
            (planes_of(library, part.raw, part.kind), part.order) for part in weight.parts
        ]

    @property
    def stored_bytes(self) -> int:
        """Bytes of the weights."""
        found = (tensor for planes, _ in self._parts for tensor in _tensors(planes).values())
        return sum(tensor.numel() * tensor.element_size() for tensor in found)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PlaneLinear":
        """Move with the model. Planes keep their own types, whatever the model's becomes."""
        device = fn(torch.empty(0)).device
        self._parts = [
            (_on(planes, device), None if order is None else order.to(device))
            for planes, order in self._parts
        ]
        super()._apply(fn, recurse)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """`[..., N]` of x `[..., K]`."""
        from ...kernels.linear.triton import plane_linear  # triton is not installed everywhere

        found = [
            plane_linear(x if order is None else x[..., order], planes, None)
            for planes, order in self._parts
        ]
        y = found[0] if len(found) == 1 else torch.cat(found, dim=-1)
        return y if self.bias is None else y + self.bias


def fits_planes(weight: Any) -> bool:
    """Whether all of a weight is in blocks of codes."""
    return isinstance(weight, BlockTensor) and all(
        part.kind not in FLOAT_TYPES for part in weight.parts
    )


def _tensors(planes: Planes) -> dict[str, Tensor]:
    names = ("codes", "scales", "zeros", "leasts", "table")
    return {name: part for name in names if (part := getattr(planes, name)) is not None}


def _on(planes: Planes, device: torch.device) -> Planes:
    return replace(planes, **{name: part.to(device) for name, part in _tensors(planes).items()})
