"""Acceptance probability: how often draft tokens were right lately, and so how many will be."""

from typing import Final

from .base import DraftContext

_MEMORY: Final = 0.9
"""Weight of a pass after one more; about the last ten count."""
_PRIOR_RATE, _PRIOR_TRIALS = 0.7, 4.0
_FIRST_PAUSE, _LONGEST_PAUSE = 32, 512
_TRIAL_PASSES: Final = 3


class Acceptance:
    """Estimates the probability that a draft token is accepted if those before it were.

    It begins at the estimate of `earlier`, from earlier sequences, and `earlier` learns with it.
    At a low probability nothing is drafted, so nothing would be learned. So now and then a trial of
    a few passes drafts all the same, more and more rarely while it gains nothing. The passes of all
    sequences count towards the next trial, which one sequence makes.
    """

    def __init__(self, earlier: "Acceptance | None" = None) -> None:
        self._earlier = earlier
        rate = _PRIOR_RATE if earlier is None else earlier.rate
        self._hits = rate * _PRIOR_TRIALS
        self._trials = _PRIOR_TRIALS
        self._without = 0
        self._pause = _FIRST_PAUSE
        self._trial = 0

    @property
    def rate(self) -> float:
        """The estimate, 0 to 1."""
        return self._hits / self._trials

    def expected(self, size: int) -> float:
        """How many of `size` draft tokens in a chain will be right, on average."""
        rate = min(self.rate, 0.99)
        return rate * (1 - rate**size) / (1 - rate)

    def skip(self, passes: int) -> None:
        """Count `passes` without draft tokens."""
        (self._earlier or self)._without += passes

    def take_trial(self) -> bool:
        """Whether the next pass should draft whatever the estimate says."""
        shared = self._earlier or self
        if self._trial == 0 and shared._without >= shared._pause:
            shared._without = 0
            shared._pause = min(2 * shared._pause, _LONGEST_PAUSE)
            self._trial = _TRIAL_PASSES
        return self._trial > 0

    def observe(self, drafted: int, right: int) -> None:
        """Learn from a pass with `drafted` draft tokens, of which the first `right` were right."""
        if self._trial == _TRIAL_PASSES:  # the first pass of a trial forgets the old estimate
            self._hits = self._trials = 0.0
        self._trial = max(0, self._trial - 1)
        self._hits = self._hits * _MEMORY + right
        self._trials = self._trials * _MEMORY + right + (right < drafted)
        if self._earlier is not None:
            self._earlier.observe(drafted, right)
        shared = self._earlier or self
        shared._without = 0
        if shared.rate > 0.5:
            shared._pause = _FIRST_PAUSE


def acceptance_of(context: DraftContext, name: str) -> Acceptance:
    """An estimate for a new sequence; it begins at that of earlier sequences under `name`."""
    earlier = context.memory.setdefault(f"acceptance: {name}", Acceptance())
    return Acceptance(earlier)
