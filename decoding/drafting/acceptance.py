"""How often draft tokens have been right lately, and what that promises for the next ones."""

from typing import Final

from ..base import DraftContext

_MEMORY: Final = 0.9
"""What a pass weighs after one more; the last ten or so count."""
_PRIOR_RATE, _PRIOR_TRIALS = 0.7, 4.0
_FIRST_PAUSE, _LONGEST_PAUSE = 32, 512
_TRIAL_PASSES: Final = 3


class Acceptance:
    """Estimates the chance that a draft token is right where those before it were.

    It begins where `earlier` is, what earlier sequences have shown, and `earlier` learns with it.
    Where the chance is low nothing is drafted and nothing would be learned: now and then a few
    passes are tried nevertheless, ever more seldom while they bring nothing. The passes of all
    sequences count towards the next trial, and one of them makes it.
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
        """How many of `size` draft tokens in a row will be right."""
        rate = min(self.rate, 0.99)
        return rate * (1 - rate**size) / (1 - rate)

    def skip(self, passes: int) -> None:
        """So many passes had no draft tokens."""
        (self._earlier or self)._without += passes

    def take_trial(self) -> bool:
        """Whether the next pass should draft whatever it seems to promise."""
        shared = self._earlier or self
        if self._trial == 0 and shared._without >= shared._pause:
            shared._without = 0
            shared._pause = min(2 * shared._pause, _LONGEST_PAUSE)
            self._trial = _TRIAL_PASSES
        return self._trial > 0

    def observe(self, drafted: int, right: int) -> None:
        """Learn from a pass with draft tokens."""
        if self._trial == _TRIAL_PASSES:  # the first pass of a trial forgets the old bad ones
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
    """For a new sequence, beginning with what those before it showed of the drafts called that."""
    earlier = context.memory.setdefault(f"acceptance: {name}", Acceptance())
    return Acceptance(earlier)
