"""Drafts what a grammar forces; elsewhere another drafter's tokens, as far as it allows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..drafting.base import Drafting
from ..drafting.draft import Draft

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .constraint import Constraint

_MOST: Final = 32
"""Most forced tokens that one pass verifies."""


class ConstrainedDrafting(Drafting):
    """Drafts for one constrained sequence.

    Forced tokens nearly always turn out right, because each of them is needed and hardly ever
    written with other tokens: their size is `fixed`. `drafter`: asked where nothing is forced.
    `vocab_size`: of the model; the tokenizer may know more tokens.
    """

    def __init__(
        self, constraint: Constraint, drafter: Drafting | None, *, vocab_size: int
    ) -> None:
        self._constraint = constraint
        self._drafter = drafter
        self._vocab_size = vocab_size
        self._whole: Draft | None = None
        self._kept: list[int] = []

    @property
    def fixed(self) -> bool:
        """See `Drafting`."""
        if self._forced():
            return True
        return self._drafter is not None and self._drafter.fixed

    def sizes(self, limit: int, worth: float) -> Sequence[tuple[int, float]]:
        """See `Drafting`."""
        forced = min(len(self._forced()), limit)
        if forced:
            return [(forced, float(forced))]
        return [] if self._drafter is None else self._drafter.sizes(limit, worth)

    def propose(self, size: int, limit: int) -> Draft:
        """See `Drafting`."""
        forced = self._forced()
        self._whole = None
        if forced or self._drafter is None:
            return Draft(forced[:size])
        whole = self._whole = self._drafter.propose(size, limit)
        kept = self._kept = self._constraint.allowed(whole)
        tokens = [whole.tokens[index] for index in kept]
        if whole.parents is None:
            return Draft(tokens)
        place = {index: at for at, index in enumerate(kept)}
        return Draft(tokens, [place.get(whole.parents[index], -1) for index in kept])

    def learn(self, draft: Draft, predictions: Sequence[int], accepted: Sequence[int]) -> None:
        """See `Drafting`. The drafter learns from its own drafts, as if all had been verified.

        What would have followed a forbidden token is unknown: the draft itself stands for it.
        """
        whole = self._whole
        if whole is None or self._drafter is None:
            return
        known = dict(zip(self._kept, predictions[1:], strict=True))
        followed = list(whole.tokens)
        for index, token in enumerate(whole.tokens):
            before = index - 1 if whole.parents is None else whole.parents[index]
            if before >= 0:
                followed[before] = token
        filled = [known.get(index, token) for index, token in enumerate(followed)]
        right = [self._kept[index] for index in accepted]
        self._drafter.learn(whole, [predictions[0], *filled], right)

    def finish(self) -> None:
        """See `Drafting`."""
        if self._drafter is not None:
            self._drafter.finish()

    def _forced(self) -> list[int]:
        forced = self._constraint.forced()[:_MOST]
        known = next((i for i, token in enumerate(forced) if token >= self._vocab_size), None)
        return forced[:known]
