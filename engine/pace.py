"""How long a step takes, as lately measured: what a draft costs here and now.

    seconds = F(rows) + g(rows + guesses) * guesses + a * drafts

F is what sequences cost without guesses, g a guess in a pass of so many rows, and `a` what a
sequence that drafts costs beyond its guesses, because its attention is a call of its own. F and g
are kept on a grid. All are learned from every step that reads no prompt: where several could be
wrong, an error is shared out by how uncertain each of them is.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import Final

_WEIGHT: Final = 0.15
"""Of a new measurement."""
_MOST: Final = 1.5
"""Times the estimate: a measurement above counts as no more."""
_GRID: Final = 4
"""Estimates per doubling of the rows."""
_FORGET_EVERY, _FORGET_SHARE = 64, 0.05
_FIXED_SHARE: Final = 0.5
"""Of the time of the smallest size measured, taken not to depend on its rows."""
_GUESS_SHARE: Final = 0.02
"""What a guess costs until measured, as a share of F: few rows are bound by reading the weights."""
_VARIANCES: Final = (0.1**2, 0.02**2, 0.03**2)
"""How uncertain are F, g and a, as shares of F."""


class Pace:
    """Estimates from measured steps; between the sizes that were measured it interpolates."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._plain = _Curve()
        self._guess = _Curve()
        self._per_draft = 0.0
        self._observed = 0
        self._began_s = 0.0

    def start(self) -> None:
        """A step begins."""
        self._began_s = self._clock()

    def stop(self, rows: int, guesses: int, drafts: int) -> None:
        """It has ended; see `observe`."""
        self.observe(rows, guesses, drafts, self._clock() - self._began_s)

    def observe(self, rows: int, guesses: int, drafts: int, seconds: float) -> None:
        """A step of so many rows, with so many guesses beside them in so many drafts."""
        self._forget()
        if not self._plain.sizes:
            self._plain.set(rows, seconds)
            return
        plain = self._of_rows(rows)
        estimate = self.seconds(rows, guesses, drafts)
        error = _WEIGHT * (min(seconds, _MOST * estimate) - estimate)
        of_rows, of_guess, of_draft = _VARIANCES
        of_guesses, of_drafts = of_guess * guesses * guesses, of_draft * drafts * drafts
        error /= of_rows + of_guesses + of_drafts
        self._plain.set(rows, max(plain + error * of_rows, 0.0))
        if guesses:
            each = self._of_guess(rows, guesses) + error * of_guesses / guesses
            self._guess.set(rows + guesses, max(each, 0.0))
        if drafts:
            self._per_draft = max(self._per_draft + error * of_drafts / drafts, 0.0)

    def seconds(self, rows: int, guesses: int = 0, drafts: int = 0) -> float:
        """Estimate for a step; 1 where nothing is known.

        Between two sizes that were measured it is a straight line. Beyond them it is a guess that
        invites to try: fewer rows take less, more rows take no more than in proportion.
        """
        seconds = self._of_rows(rows) + self._per_draft * drafts
        return seconds + self._of_guess(rows, guesses) * guesses if guesses else seconds

    def _of_rows(self, rows: int) -> float:
        sizes = self._plain.sizes
        if not sizes:
            return 1.0
        if rows < sizes[0]:
            share = _FIXED_SHARE + (1 - _FIXED_SHARE) * rows / sizes[0]
            return self._plain.at(sizes[0]) * share
        return self._plain.at(rows) * max(1.0, rows / sizes[-1])

    def _of_guess(self, rows: int, guesses: int) -> float:
        if not self._guess.sizes:
            return _GUESS_SHARE * self._of_rows(rows)
        return self._guess.at(rows + guesses)

    def _forget(self) -> None:
        """Let what is not measured any more seem cheaper, until it is tried and measured again."""
        self._observed += 1
        if self._observed % _FORGET_EVERY == 0:
            self._guess.shrink(_FORGET_SHARE)
            self._per_draft *= 1 - _FORGET_SHARE


class _Curve:
    """Values at sizes on a grid; straight lines between them, level beyond."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self._of: dict[int, float] = {}

    def at(self, size: int) -> float:
        """The value at a size; there has to be one somewhere."""
        known = self._of.get(size)
        if known is not None:
            return known
        at = bisect_left(self.sizes, size)
        if at in (0, len(self.sizes)):
            return self._of[self.sizes[max(0, at - 1)]]
        low, high = self.sizes[at - 1], self.sizes[at]
        share = (size - low) / (high - low)
        return self._of[low] + share * (self._of[high] - self._of[low])

    def set(self, size: int, value: float) -> None:
        """Set the value at the nearest size on the grid."""
        if size > 2 * _GRID:
            size = round(2 ** (round(_GRID * math.log2(size)) / _GRID))
        if size not in self._of:
            self.sizes.insert(bisect_left(self.sizes, size), size)
        self._of[size] = value

    def shrink(self, share: float) -> None:
        """Lower all values by a share of them."""
        for size in self.sizes:
            self._of[size] *= 1 - share
