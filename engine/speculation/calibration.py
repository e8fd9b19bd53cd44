"""Calibration of a drafter's acceptance probabilities: draft tokens accepted, by those expected to
be."""

from typing import Final

_PRIOR: Final = 8.0
"""Draft tokens taken to have been expected and accepted before the first draft."""
_MEMORY: Final = 0.98
"""Factor on the weight of earlier drafts after one more; about the last fifty count."""
_RECOVERY: Final = 0.998
"""The same factor after a step for which the drafter offered nothing worth drafting."""


class AcceptanceCalibration:
    """Covers all drafts that one drafter makes for the requests that share its memory.

    The planner takes the best of several sizes, so that even unbiased estimates come out too high.
    They are therefore scaled to the share of expected tokens that was accepted lately.
    """

    def __init__(self) -> None:
        self._expected = self._accepted = 0.0

    @property
    def share(self) -> float:
        """The factor by which to scale expected acceptances; 1 at most."""
        return min(1.0, (self._accepted + _PRIOR) / (self._expected + _PRIOR))

    def note(self, expected_accepted: float, accepted: int) -> None:
        """Record a verified draft: draft tokens expected to be accepted, and those that were."""
        self._expected = self._expected * _MEMORY + expected_accepted
        self._accepted = self._accepted * _MEMORY + accepted

    def recover(self) -> None:
        """Move `share` towards 1 after a step without a draft: an unused drafter cannot recover."""
        self._expected *= _RECOVERY
        self._accepted *= _RECOVERY
