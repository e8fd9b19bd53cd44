"""Time that something may take which may turn out to have been for nothing."""

from typing import Final

_OVERDRAWN: Final = 0.3
"""Steps, at most: what is measured holds whatever else held this process up meanwhile."""


class TimeBudget:
    """A share of all time, and what else is earned; at most so many steps' time is saved up.

    It may be overdrawn a little, for what something takes is known when it has been done.
    """

    def __init__(self, *, share: float, most_steps: float) -> None:
        self._share = share
        self._most_steps = most_steps
        self._step_s = 0.0
        self.left_s = 0.0

    def pass_step(self, seconds: float) -> None:
        """Another step, which takes so long."""
        self._step_s = seconds
        self.left_s = min(self.left_s + self._share * seconds, self._most_steps * seconds)

    def earn(self, seconds: float) -> None:
        """What was done has saved time."""
        self.left_s = min(self.left_s + seconds, self._most_steps * self._step_s)

    def spend(self, seconds: float) -> None:
        """It has taken so long."""
        self.left_s = max(self.left_s - seconds, -_OVERDRAWN * self._step_s)
