"""Time that something may take which may turn out to have been for nothing."""


class Allowance:
    """A share of all time, and what else is earned; at most so many steps' time is saved up.

    It may be overdrawn, for what something takes is known when it has been done.
    """

    def __init__(self, *, share: float, most_steps: float) -> None:
        self._share = share
        self._most_steps = most_steps
        self._most_s = 0.0
        self.left_s = 0.0

    def pass_step(self, seconds: float) -> None:
        """Another step, which takes so long."""
        self._most_s = self._most_steps * seconds
        self.left_s = min(self.left_s + self._share * seconds, self._most_s)

    def earn(self, seconds: float) -> None:
        """What was done has saved time."""
        self.left_s = min(self.left_s + seconds, self._most_s)

    def spend(self, seconds: float) -> None:
        """It has taken so long."""
        self.left_s -= seconds
