"""Linear layers that add their adapters' share themselves, in models that are no compiled whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...kernels.linear.low_rank import Share, joined
from ...kernels.linear.native import NativeLinear, pack
from ...kernels.native.library import Library
from .step import StepAdapters


@dataclass(frozen=True, slots=True, eq=False)
class AttachedAdapter:
    """An adapter's layers x A^T and s B^T, by the number of the layer that they add to."""

    pairs: Mapping[int, tuple[nn.Module, nn.Module]]


class AttachedLinear(nn.Module):
    """A layer of the model, and what adapters add to it. `number`: by which they know it.

    `rows`: how many there were in the last call. `is_head`: whether it sees the wanted rows alone.
    """

    def __init__(self, inner: nn.Module, number: int, step: StepAdapters) -> None:
        super().__init__()
        self.inner = inner
        self.number = number
        self.rows = 0
        self.is_head = False
        self._step = step

    def forward(self, x: Tensor) -> Any:
        """`[..., N]` of x `[..., K]`."""
        y: Any = self.inner(x)
        if not isinstance(y, Tensor):  # a router that returns more; `rows` stays as it is
            return y
        rows_x = x.reshape(-1, x.shape[-1])
        self.rows = len(rows_x)
        adapters = self._step.of_wanted if self.is_head else self._step.of_rows
        if adapters is None:
            return y
        rows_y = y.view(-1, y.shape[-1])
        for span, adapter in spans(adapters):
            pair = adapter.pairs.get(self.number)
            if pair is not None:
                down, up = pair
                rows_y[span] += up(down(rows_x[span]))
        return y


def spans(adapters: Sequence[AttachedAdapter | None]) -> list[tuple[slice, AttachedAdapter]]:
    """Neighbouring rows of one adapter."""
    found: list[tuple[slice, AttachedAdapter]] = []
    first = 0
    for row in range(1, len(adapters) + 1):
        owner = adapters[first]
        if row < len(adapters) and adapters[row] is owner:
            continue
        if owner is not None:
            found.append((slice(first, row), owner))
        first = row
    return found


def attached_pair(
    shares: Sequence[Share], outputs: int, library: Library | None, like: Tensor
) -> tuple[nn.Module, nn.Module]:
    """Layers x A^T and s B^T `[outputs]` of an adapter's shares of one layer.

    `library`: they are compiled, so that a row has the same bits in any company; None: torch's
    layers, with the dtype and on the device of `like`.
    """
    down, up = joined(shares, outputs)
    if library is not None:
        packed = (pack(library, weight, None) for weight in (down, up))
        down_layer, up_layer = (NativeLinear(library, each) for each in packed)
        return down_layer, up_layer
    return _linear(down.to(like)), _linear(up.to(like))


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
