"""How long a step takes by its rows, as lately measured: what a draft's rows cost here and now."""

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import Final

_WEIGHT: Final = 0.15
"""Of a new measurement; an outlier of twice the time moves an estimate by no more than this."""
_GRID: Final = 4
"""Estimates per doubling of the rows."""
_FREE_ROWS: Final = 8
"""Taken to cost as much as one, until measured: few rows are bound by reading the weights."""
_FIXED_SHARE: Final = 0.5
"""Of the time of the smallest size measured, taken not to depend on its rows."""


class Pace:
    """Estimates from measured steps; between the sizes that were measured it interpolates."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: dict[int, float] = {}
        self._sizes: list[int] = []
        self._began_s = 0.0

    def start(self) -> None:
        """A step begins."""
        self._began_s = self._clock()

    def stop(self, rows: int) -> None:
        """It has ended, and had so many rows."""
        self.observe(rows, self._clock() - self._began_s)

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took that long."""
        size = _on_grid(rows)
        known = self._seconds.get(size)
        if known is None:
            self._seconds[size] = seconds
            self._sizes = sorted(self._seconds)
        else:
            self._seconds[size] = known + _WEIGHT * (min(seconds, 2 * known) - known)

    def seconds(self, rows: int) -> float:
        """Estimate for a step of so many rows; 1 where nothing is known.

        Between two sizes that were measured it is a straight line. Beyond them it is a guess that
        invites to try: fewer rows take less, more rows take no more than in proportion.
        """
        sizes = self._sizes
        if not sizes:
            return 1.0
        at = bisect_left(sizes, rows)
        if at == len(sizes):
            last = sizes[-1]
            return self._seconds[last] * max(1.0, rows / max(last, _FREE_ROWS))
        if sizes[at] == rows:
            return self._seconds[rows]
        if at == 0:
            return self._seconds[sizes[0]] * (_FIXED_SHARE + (1 - _FIXED_SHARE) * rows / sizes[0])
        low, high = sizes[at - 1], sizes[at]
        share = (rows - low) / (high - low)
        return self._seconds[low] + share * (self._seconds[high] - self._seconds[low])


def _on_grid(rows: int) -> int:
    """The nearest size that estimates are kept for."""
    if rows <= 2 * _GRID:
        return rows
    return round(2 ** (round(_GRID * math.log2(rows)) / _GRID))
