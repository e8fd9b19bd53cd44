"""How often guesses have been right lately, and what that promises for the next ones."""

from typing import Final

_MEMORY: Final = 0.9
"""What a pass weighs after one more; the last ten or so count."""
_PRIOR_RATE, _PRIOR_TRIALS = 0.7, 4.0
_FIRST_PAUSE, _LONGEST_PAUSE = 32, 512
_TRIAL_PASSES: Final = 3


class Acceptance:
    """Estimates the chance that a guess is right where those before it were.

    Where it is low nothing is drafted and nothing would be learned: now and then a few passes are
    drafted nevertheless, ever more seldom while they bring nothing.
    """

    def __init__(self) -> None:
        self._hits = _PRIOR_RATE * _PRIOR_TRIALS
        self._trials = _PRIOR_TRIALS
        self._without = 0
        self._pause = _FIRST_PAUSE
        self._trial = 0

    @property
    def rate(self) -> float:
        """The estimate, 0 to 1."""
        return self._hits / self._trials

    @property
    def is_trial(self) -> bool:
        """Whether the next pass should draft whatever it seems to promise."""
        return self._trial > 0 or self._without >= self._pause

    def expected(self, size: int) -> float:
        """How many of `size` guesses in a row will be right."""
        rate = min(self.rate, 0.99)
        return rate * (1 - rate**size) / (1 - rate)

    def observe(self, drafted: int, right: int) -> None:
        """Learn from a pass; `drafted` 0 is one without guesses."""
        if drafted == 0:
            self._without += 1
            return
        if self._without >= self._pause:  # the first pass of a trial forgets the old bad ones
            self._trial = _TRIAL_PASSES
            self._hits = self._trials = 0.0
        self._without = 0
        if self._trial > 0:
            self._trial -= 1
        self._hits = self._hits * _MEMORY + right
        self._trials = self._trials * _MEMORY + right + (right < drafted)
        if self.rate > 0.5:
            self._pause = _FIRST_PAUSE
        elif self._trial == 1:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
