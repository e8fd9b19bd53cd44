"""How long a step takes, as lately measured: what a draft costs here and now.

    seconds = F(rows) + a * drafts

F is kept on a grid of row counts; `a` is what a sequence that drafts costs beyond its rows, because
its attention is a call of its own. Both are learned from every step that reads no prompt.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import Final

_WEIGHT: Final = 0.15
"""Of a new measurement."""
_MOST: Final = 1.5
"""Times the estimate: a measurement above counts as no more."""
_DRAFTS_SHARE: Final = 0.1
"""Of an error, with one draft."""
_GRID: Final = 4
"""Estimates per doubling of the rows."""
_FORGET_EVERY, _FORGET_SHARE = 64, 0.05
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
        self._per_draft = 0.0
        self._observed = 0
        self._began_s = 0.0

    def start(self) -> None:
        """A step begins."""
        self._began_s = self._clock()

    def stop(self, rows: int, drafts: int) -> None:
        """It has ended, and had so many rows and drafts."""
        self.observe(rows, drafts, self._clock() - self._began_s)

    def observe(self, rows: int, drafts: int, seconds: float) -> None:
        """A step of so many rows, guesses included, and so many drafts took that long."""
        size = _on_grid(rows)
        self._forget()
        known = self._seconds.get(size)
        if known is None:
            first = max(seconds - self._per_draft * drafts, 0.0)
            # The first step of a size may have been slow for reasons of its own.
            self._seconds[size] = min(first, 2 * self._of_rows(size)) if self._sizes else first
            self._sizes = sorted(self._seconds)
            return
        estimate = known + self._per_draft * drafts
        error = _WEIGHT * (min(seconds, _MOST * estimate) - estimate)
        # It may lie with either: with the drafts the rather, the more there are.
        of_drafts = _DRAFTS_SHARE * drafts * drafts
        self._per_draft = max(
            0.0, self._per_draft + error * of_drafts / (1 + of_drafts) / max(1, drafts)
        )
        self._seconds[size] = max(known + error / (1 + of_drafts), 0.0)

    def _forget(self) -> None:
        """Let what is not measured any more seem cheaper, until it is tried and measured again."""
        self._observed += 1
        if self._observed % _FORGET_EVERY == 0:
            low = min(self._seconds.values())
            for size, known in self._seconds.items():
                self._seconds[size] = known - _FORGET_SHARE * (known - low)
            self._per_draft *= 1 - _FORGET_SHARE

    def seconds(self, rows: int, drafts: int = 0) -> float:
        """Estimate for a step; 1 where nothing is known.

        Between two sizes that were measured it is a straight line. Beyond them it is a guess that
        invites to try: fewer rows take less, more rows take no more than in proportion.
        """
        return self._of_rows(rows) + self._per_draft * drafts

    def _of_rows(self, rows: int) -> float:
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
