"""What a drafter's promises are worth: draft tokens that were right, by those that it expected to
be."""

from typing import Final

_PRIOR: Final = 8.0
"""Draft tokens, as if so many had been promised and right before."""
_MEMORY: Final = 0.98
"""What earlier drafts weigh after one more; the last fifty or so count."""
_FORGIVING: Final = 0.998
"""The same, after one more step for which the drafter was asked in vain."""


class AcceptanceCalibration:
    """Of all drafts that one drafter makes for the requests that share what it remembers.

    It offers several sizes and the best one is taken, so that even honest estimates flatter. What
    it promises beyond what it has lately kept is no reason to draft.
    """

    def __init__(self) -> None:
        self._promised = self._right = 0.0

    @property
    def share(self) -> float:
        """Of what is promised, how much to believe; 1 at most."""
        return min(1.0, (self._right + _PRIOR) / (self._promised + _PRIOR))

    def note(self, expected_accepted: float, right: int) -> None:
        """A draft has been verified."""
        self._promised = self._promised * _MEMORY + expected_accepted
        self._right = self._right * _MEMORY + right

    def forgive(self) -> None:
        """Another step without a draft; whoever is never believed could never prove better."""
        self._promised *= _FORGIVING
        self._right *= _FORGIVING
