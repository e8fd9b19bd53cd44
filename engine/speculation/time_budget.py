"""A time budget for work that may turn out to be useless, such as looking for drafts."""

from typing import Final

_OVERDRAWN: Final = 0.3
"""Largest debt, in steps: a measured time includes whatever else delayed this process."""


class TimeBudget:
    """A share of all time plus what is earned; at most the time of `most_steps` steps is saved up.

    It may be overdrawn a little, since the time of some work is known only afterwards.
    """

    def __init__(self, *, share: float, most_steps: float) -> None:
        self._share = share
        self._most_steps = most_steps
        self._step_s = 0.0
        self.left_s = 0.0

    def pass_step(self, seconds: float) -> None:
        """Add the share of another step, which takes `seconds`."""
        self._step_s = seconds
        self.left_s = min(self.left_s + self._share * seconds, self._most_steps * seconds)

    def earn(self, seconds: float) -> None:
        """Add time that the work has saved."""
        self.left_s = min(self.left_s + seconds, self._most_steps * self._step_s)

    def spend(self, seconds: float) -> None:
        """Take off the time that the work took."""
        self.left_s = max(self.left_s - seconds, -_OVERDRAWN * self._step_s)
