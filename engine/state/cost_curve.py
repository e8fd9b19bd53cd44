"""A measured quantity as a function of a size, interpolated linearly between measurements."""

import math
from bisect import bisect_left
from functools import cache
from typing import Final

_GRID: Final = 4
"""Sizes of the grid per doubling."""
_FIXED_SHARE: Final = 0.5
"""Share of the value at the smallest measured size that is taken not to depend on the size."""


@cache
def on_grid(size: int) -> int:
    """The nearest size on the grid."""
    if size <= 2 * _GRID:
        return size
    return round(2 ** (round(_GRID * math.log2(size)) / _GRID))


class Curve:
    """Values at sizes on a grid: linear between them, constant beyond."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._of: dict[int, float] = {}

    def at(self, size: int) -> float:
        """The value at any size; at least one value must have been set.

        A measurement is stored at the nearest size on the grid, and read from there.
        """
        known = self._of.get(on_grid(size))
        if known is not None:
            return known
        at = bisect_left(self.sizes, size)
        if at in (0, len(self.sizes)):
            return self._of[self.sizes[max(0, at - 1)]]
        low, high = self.sizes[at - 1], self.sizes[at]
        share = (size - low) / (high - low)
        return self._of[low] + share * (self._of[high] - self._of[low])

    def estimate(self, size: int) -> float:
        """As `at`, but beyond the measured sizes an estimate that encourages trying them.

        Smaller sizes cost less, larger ones no more than in proportion.
        """
        size = on_grid(size)
        if size < self.sizes[0]:
            share = _FIXED_SHARE + (1 - _FIXED_SHARE) * size / self.sizes[0]
            return self.at(self.sizes[0]) * share
        return self.at(size) * max(1.0, size / self.sizes[-1])

    def has(self, size: int) -> bool:
        """Whether there is a value at this size on the grid."""
        return size in self._of

    def set(self, size: int, value: float) -> None:
        """Set the value at a size on the grid."""
        if size not in self._of:
            self.sizes.insert(bisect_left(self.sizes, size), size)
        self._of[size] = value
