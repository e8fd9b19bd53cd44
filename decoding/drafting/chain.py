"""What drafters of a single line of guesses share: how long a line pays."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Final

from ..base import Drafting
from .acceptance import Acceptance
from .draft import Draft

MAX_WINDOW: Final = 256
SIZES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_TRIAL_SIZE: Final = 4
_WORTH_A_TRIAL: Final = 1e6


class ChainDrafting(Drafting):
    """Drafts one line, as long as it has lately paid, or always as long as it can."""

    def __init__(self, *, adaptive: bool) -> None:
        self.acceptance = Acceptance()
        self._adaptive = adaptive

    @property
    def fixed(self) -> bool:
        """See `Drafting`."""
        return not self._adaptive

    @abstractmethod
    def available(self, limit: int) -> int:
        """How many guesses there are, `limit` at most."""

    @abstractmethod
    def guesses(self, count: int) -> list[int]:
        """That many of them."""

    @abstractmethod
    def learned(self, predictions: Sequence[int], right: int) -> None:
        """Take in a pass of which the first `right` guesses were; called after every pass."""

    def sizes(self, limit: int) -> list[tuple[int, float]]:
        """See `Drafting`."""
        most = self.available(limit)
        if most <= 0:
            return []
        expected = self.acceptance.expected
        if not self._adaptive:
            return [(most, expected(most))]
        if self.acceptance.is_trial:
            return [(min(most, _TRIAL_SIZE), _WORTH_A_TRIAL)]
        sizes = [size for size in SIZES if size < most]
        return [(size, expected(size)) for size in (*sizes, most)]

    def propose(self, size: int, limit: int) -> Draft:
        """See `Drafting`."""
        return Draft(self.guesses(min(size, self.available(limit))))

    def learn(
        self, draft: Draft | None, predictions: Sequence[int], accepted: Sequence[int]
    ) -> None:
        """See `Drafting`."""
        self.acceptance.observe(len(draft.tokens) if draft is not None else 0, len(accepted))
        self.learned(predictions, len(accepted))
