"""Where one choice is in its answer's form: which tokens may follow, and which have to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from llguidance import LLMatcher

    from ..drafting.draft import Draft

Bits = np.ndarray[Any, np.dtype[np.int32]]
"""Masks, int32 `[R, W]`: bit i % 32 of word i // 32 says whether token i is allowed."""


class Constraint(ABC):
    """What the tokens of one choice have to be, at the place where the choice is."""

    @abstractmethod
    def fork(self) -> Constraint:
        """The same place, for a choice that may continue differently."""

    @property
    @abstractmethod
    def failure(self) -> str | None:
        """Why it cannot go on: its grammar has turned out to be too complex."""

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether the answer satisfies the grammar and nothing can follow."""

    @abstractmethod
    def read(self, tokens: Sequence[int]) -> None:
        """Go on by these tokens, each of which has to be allowed."""

    @abstractmethod
    def forced(self) -> list[int]:
        """Tokens that have to come next, as the tokenizer would write them.

        The mask may also allow shorter tokens for the same bytes; so they are a draft.
        """

    @abstractmethod
    def allowed(self, draft: Draft) -> list[int]:
        """Indices of the draft tokens that are allowed, behind others that are."""

    @abstractmethod
    def masks(self, draft: Draft | None = None) -> Bits:
        """What may follow the newest token and each draft token; nothing, behind forbidden ones."""


def mask_words(vocab_size: int, unnamed_ends: Collection[int]) -> int:
    """Words of a mask: of every mask of one model the same."""
    return max((vocab_size - 1, *unnamed_ends)) // 32 + 1


def children_of(draft: Draft) -> dict[int, list[int]]:
    """Indices of the draft tokens behind each draft token; -1: behind the newest token."""
    children: dict[int, list[int]] = {}
    for index in range(len(draft.tokens)):
        parent = index - 1 if draft.parents is None else draft.parents[index]
        children.setdefault(parent, []).append(index)
    return children


class GrammarConstraint(Constraint):
    """One choice's place in a grammar. `vocab_size`: of the compiled vocabulary. `ends`: tokens
    that end an answer; `unnamed_ends`: those of them that are beyond the vocabulary.

    A matcher never raises: once it has failed, `failure` says why and nothing is allowed.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocab_size: int,
        ends: frozenset[int],
        unnamed_ends: frozenset[int] = frozenset(),
    ) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._ends = ends
        self._unnamed_ends = unnamed_ends
        self._forced: list[int] | None = None
        self._ended = False

    def fork(self) -> GrammarConstraint:
        """See `Constraint`."""
        matcher = self._matcher.deep_copy()
        return GrammarConstraint(matcher, self._vocab_size, self._ends, self._unnamed_ends)

    @property
    def failure(self) -> str | None:
        """See `Constraint`."""
        if not self._matcher.is_error():
            return None
        return self._matcher.get_error().partition("\n")[0]

    @property
    def complete(self) -> bool:
        """See `Constraint`."""
        if self._ended:
            return True
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def read(self, tokens: Sequence[int]) -> None:
        """See `Constraint`."""
        self._forced = None
        for token in tokens:
            if token in self._unnamed_ends:
                self._ended = True
            else:
                self._matcher.consume_token(token)

    def forced(self) -> list[int]:
        """See `Constraint`."""
        if self._forced is None:
            self._forced = self._matcher.compute_ff_tokens()
        return self._forced

    def allowed(self, draft: Draft) -> list[int]:
        """See `Constraint`."""
        kept: list[int] = []
        self._walk(draft, kept.append)
        return sorted(kept)

    def masks(self, draft: Draft | None = None) -> Bits:
        """See `Constraint`."""
        rows = 1 if draft is None else 1 + len(draft.tokens)
        words = mask_words(self._vocab_size, self._unnamed_ends)
        bits = np.zeros((rows, words), dtype=np.int32)
        self._fill(bits[0])
        if draft is not None:
            self._walk(draft, lambda index: self._fill(bits[1 + index]))
        return bits

    def _fill(self, row: Bits) -> None:
        known = row[: (self._vocab_size + 31) // 32]
        self._matcher.unsafe_compute_mask_ptr(known.ctypes.data, known.nbytes)
        if self._unnamed_ends and self._matcher.is_accepting():
            for token in self._unnamed_ends:
                row.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)

    def _walk(self, draft: Draft, visit: Callable[[int], None]) -> None:
        """Visit each allowed draft token, with the matcher just behind it; ends where it began."""
        children = children_of(draft)
        matcher, read = self._matcher, 0
        ahead = children.get(-1, [])[::-1]
        while ahead:
            index = ahead.pop()
            if draft.tokens[index] in self._ends:
                continue  # a matcher that has read an end stays there, whatever is rolled back
            before = draft.depths[index] - 1
            if read > before:
                matcher.rollback(read - before)
                read = before
            if matcher.try_consume_tokens([draft.tokens[index]]) == 1:
                read += 1
                visit(index)
                ahead += children.get(index, [])[::-1]
        if read:
            matcher.rollback(read)
