"""States of layers that remember a sequence in a fixed number of values: recurrences, convolutions.

One slot holds the states of all layers of one sequence, whatever its length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Slots = slice | Tensor
"""Slots of several sequences: consecutive ones, or int64 `[B]`."""


class StateKey(NamedTuple):
    """Which state: the layer's index as the model counts, the kind, and its number in the layer."""

    layer: int
    kind: Literal["conv", "recurrent"]
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateShape:
    """One state of one sequence: shape without a batch, and dtype."""

    key: StateKey
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Memory of it in one slot."""
        return prod(self.shape) * self.dtype.itemsize


def slot_bytes(shapes: Sequence[StateShape]) -> int:
    """Memory of one slot."""
    return sum(each.bytes for each in shapes)


class StateStore:
    """The states of all slots. Memory is reserved at once and touched when first written."""

    def __init__(self, shapes: Sequence[StateShape], *, slots: int, device: torch.device) -> None:
        self.slots = slots
        self.slot_bytes = slot_bytes(shapes)
        self.bytes = slots * self.slot_bytes
        self.device = device
        self.tensors: dict[StateKey, Tensor] = {
            each.key: torch.zeros(slots, *each.shape, dtype=each.dtype, device=device)
            for each in shapes
        }

    def indices(self, slots: Sequence[int]) -> Slots:
        """An index of these slots: a slice if they are consecutive, so that no state is copied."""
        first, count = slots[0], len(slots)
        if list(slots) == list(range(first, first + count)):
            return slice(first, first + count)
        return self.tensor(slots)

    def tensor(self, numbers: Sequence[int]) -> Tensor:
        """Numbers of slots or rows, int64 on the states' device."""
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)

    def copy(self, source: int, target: int) -> None:
        """Copy all states of a slot to another."""
        for tensor in self.tensors.values():
            tensor[target] = tensor[source]

    def read(self, slot: int) -> list[Tensor]:
        """The states of a slot, copied to the host."""
        return [tensor[slot].to("cpu", copy=True) for tensor in self.tensors.values()]

    def write(self, slot: int, states: Sequence[Tensor]) -> None:
        """Write what `read` returned into a slot."""
        for tensor, state in zip(self.tensors.values(), states, strict=True):
            tensor[slot] = state.to(tensor.device)
