"""Base of drafters whose drafts are a single chain: how many draft tokens pay."""

from abc import abstractmethod
from collections.abc import Sequence
from math import inf
from typing import Final

from ..sampling import Row
from .acceptance import Acceptance
from .base import Drafting
from .draft import Draft

MAX_WINDOW: Final = 256
SIZES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_TRIAL_SIZE: Final = 4


class ChainDrafting(Drafting):
    """Drafts one chain: as long as lately paid if `adaptive`, else always as long as possible."""

    def __init__(self, row: Row, acceptance: Acceptance, *, adaptive: bool) -> None:
        self.row = row
        self.acceptance = acceptance
        self._adaptive = adaptive
        self._known = len(row.tokens)

    @property
    def fixed(self) -> bool:
        """See `Drafting`."""
        return not self._adaptive

    @abstractmethod
    def available(self, limit: int) -> int:
        """How many draft tokens can be made, `limit` at most."""

    @abstractmethod
    def draft_tokens(self, count: int) -> list[int]:
        """Make `count` draft tokens."""

    @abstractmethod
    def moved(self, predictions: Sequence[int]) -> None:
        """The text has grown. `predictions`: for the places after it, what the last pass predicted
        from wrong draft tokens."""

    def sizes(self, limit: int, worth: float) -> list[tuple[int, float]]:
        """See `Drafting`."""
        alone = len(self.row.tokens) - self._known
        if alone:
            self.acceptance.skip(alone)
            self._move([])
        most = self.available(limit)
        if most <= 0:
            return []
        expected = self.acceptance.expected
        if not self._adaptive:
            return [(most, expected(most))]
        if self.acceptance.take_trial():
            return [(min(most, _TRIAL_SIZE), inf)]
        sizes = [size for size in SIZES if size < most]
        return [(size, expected(size)) for size in (*sizes, most)]

    def propose(self, size: int, limit: int) -> Draft:
        """See `Drafting`."""
        return Draft(self.draft_tokens(min(size, self.available(limit))))

    def learn(self, draft: Draft, predictions: Sequence[int], accepted: Sequence[int]) -> None:
        """See `Drafting`."""
        self.acceptance.observe(len(draft.tokens), len(accepted))
        self._move(predictions[len(accepted) + 1 :])

    def _move(self, predictions: Sequence[int]) -> None:
        self._known = len(self.row.tokens)
        self.moved(predictions)
