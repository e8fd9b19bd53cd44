"""The interface of drafters: which draft tokens are verified beside the newest token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..base import DecodingMethod, P, Slot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..sampling import Row
    from .draft import Draft


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The token ids that drafters may use: those below `size`. `pad_id`: the padding token."""

    size: int
    pad_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftContext:
    """What a drafter is given beside the sequence.

    `memory`: what drafters keep across requests, by a name of their own; shared only by requests
    that may share cached prefixes. `trees`: whether drafts may branch; otherwise they are cut to
    their first path. `lines`: drafts that do not branch cost less.
    """

    vocabulary: Vocabulary
    memory: dict[str, Any]
    trees: bool = True
    lines: bool = False


class Drafter(DecodingMethod[P]):
    """Drafts tokens for speculative decoding; one forward pass verifies them.

    A wrong draft token costs a row of the pass; it never changes the answer.
    """

    slot: Slot = "drafter"

    @abstractmethod
    def start(self, parameters: P, row: Row, context: DraftContext) -> Drafting:
        """Begin drafting for the sequence `row`, whose tokens grow while it runs."""


class Drafting(ABC):
    """A drafter's state for one sequence."""

    @abstractmethod
    def sizes(self, limit: int, worth: float) -> Sequence[tuple[int, float]]:
        """Sizes worth considering: (draft tokens, how many of them are expected to be accepted).

        `limit`: tokens of the answer that could still be accepted. `worth`: about the acceptance
        probability at which a draft token pays for its row; less likely ones may be left out.
        Ascending in both numbers. The engine takes the one, or none, that makes the most tokens a
        second. A `fixed` drafter offers one. An expectation of infinity asks for a trial, which is
        granted now and then. The row may have grown by tokens that were not drafted.
        """

    @property
    def fixed(self) -> bool:
        """Whether the size is the caller's choice and not the engine's."""
        return False

    @abstractmethod
    def propose(self, size: int, limit: int) -> Draft:
        """At most `size` draft tokens, none of them more than `limit` tokens ahead."""

    def learn(  # noqa: B027 -- nothing, for drafters that learn from the row's tokens alone
        self, draft: Draft, predictions: Sequence[int], accepted: Sequence[int]
    ) -> None:
        """Learn from the pass that verified `draft`; the row's tokens have already grown.

        `predictions[0]` followed the newest token, `predictions[1 + i]` draft token i.
        `accepted`: indices of the draft tokens that were right, along one path.
        """

    def finish(self) -> None:  # noqa: B027 -- as above
        """The sequence has ended, for any reason: keep what is useful to later ones."""
