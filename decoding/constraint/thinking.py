"""Thoughts before an answer: how long they may get, and that a form begins behind them.

The budget is the idea of Muennighoff et al. 2025 (s1, arXiv:2501.19393): a thought that has used
its tokens is closed by force, and the model answers with what it has thought.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from .constraint import Constraint, children_of, mask_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..drafting.draft import Draft
    from .constraint import Bits

_BEFORE: Final = -1
_AFTER: Final = -2


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """How a model writes a thought before its answer. `begin`, `end`: tokens around it; no `begin`:
    it always thinks. `opened`: the prompt has begun the thought. `opening`: tokens that have to
    begin it even so. `budget`: further tokens that it may have; None: any number. `never`: tokens
    that it cannot have.

    The engine completes: `vocab_size`, of the tokenizer; `ends`, tokens that end an answer.
    """

    begin: int | None
    end: int
    opened: bool
    opening: tuple[int, ...] = ()
    budget: int | None = None
    never: tuple[int, ...] = ()
    vocab_size: int = 0
    ends: tuple[int, ...] = ()


class ThinkingConstraint(Constraint):
    """One choice that may think first. `answer`: the form of what follows; None: any.

    A place is the number of tokens of the thought so far, or before or after the thought.
    """

    def __init__(self, thinking: Thinking, answer: Constraint | None) -> None:
        self._thinking = thinking
        self._answer = answer
        self._rows = _Rows(thinking, must_end=answer is not None)
        self._place = 0 if thinking.opened or thinking.begin is None else _BEFORE

    def fork(self) -> ThinkingConstraint:
        """See `Constraint`."""
        answer = None if self._answer is None else self._answer.fork()
        fork = copy(self)
        fork._answer = answer
        return fork

    @property
    def failure(self) -> str | None:
        """See `Constraint`."""
        return None if self._answer is None else self._answer.failure

    @property
    def complete(self) -> bool:
        """See `Constraint`."""
        return self._place == _AFTER and self._answer is not None and self._answer.complete

    def read(self, tokens: Sequence[int]) -> None:
        """See `Constraint`."""
        for token in tokens:
            before, self._place = self._place, self._next(self._place, token)
            is_answer = before == _AFTER or (before == _BEFORE and self._place == _AFTER)
            if is_answer and self._answer is not None:
                self._answer.read((token,))

    def forced(self) -> list[int]:
        """See `Constraint`."""
        opening = self._thinking.opening
        if 0 <= self._place < len(opening):
            return list(opening[self._place :])
        if self._spent(self._place):
            return [self._thinking.end]
        if self._place == _AFTER and self._answer is not None:
            return self._answer.forced()
        return []

    def allowed(self, draft: Draft) -> list[int]:
        """See `Constraint`. A draft is followed up to the end of the thought."""
        if self._place == _AFTER:
            answer = self._answer
            return list(range(len(draft.tokens))) if answer is None else answer.allowed(draft)
        return sorted(self._places(draft))

    def masks(self, draft: Draft | None = None) -> Bits:
        """See `Constraint`."""
        if self._place == _AFTER and self._answer is not None:
            return self._answer.masks(draft)
        rows = 1 if draft is None else 1 + len(draft.tokens)
        thinking = self._thinking
        bits = np.zeros((rows, mask_words(thinking.vocab_size, thinking.ends)), dtype=np.int32)
        if self._place == _AFTER:
            bits[:] = self._rows.anything
            return bits
        bits[0] = self._mask(self._place)
        if draft is not None:
            for index, place in self._places(draft).items():
                bits[1 + index] = self._mask(place)
        return bits

    def _next(self, place: int, token: int) -> int:
        if place == _AFTER:
            return _AFTER
        if place == _BEFORE:
            return 0 if token == self._thinking.begin else _AFTER
        return _AFTER if token == self._thinking.end else place + 1

    def _spent(self, place: int) -> bool:
        budget = self._thinking.budget
        return budget is not None and place >= budget + len(self._thinking.opening)

    def _places(self, draft: Draft) -> dict[int, int]:
        """The places behind the allowed draft tokens, from a place before the end of a thought."""
        children = children_of(draft)
        places: dict[int, int] = {-1: self._place}
        ahead = [-1]
        while ahead:
            parent = ahead.pop()
            place = places[parent]
            if place == _AFTER:
                continue
            for index in children.get(parent, ()):
                token = draft.tokens[index]
                if self._may_follow(place, token):
                    places[index] = self._next(place, token)
                    ahead.append(index)
        del places[-1]
        return places

    def _may_follow(self, place: int, token: int) -> bool:
        if place == _BEFORE:
            return token == self._thinking.begin
        return self._mask(place)[token // 32] >> token % 32 & 1 == 1

    def _mask(self, place: int) -> Bits:
        """One row: what may follow at a place."""
        thinking = self._thinking
        if place in (_BEFORE, _AFTER):
            row = self._rows.anything if self._answer is None else self._answer.masks()[0]
            return row if place == _AFTER or thinking.begin is None else _with(row, thinking.begin)
        nothing = np.zeros_like(self._rows.anything)
        if place < len(thinking.opening):
            return _with(nothing, thinking.opening[place])
        return _with(nothing, thinking.end) if self._spent(place) else self._rows.thought


class _Rows:
    """Masks of places without a form: behind a thought, and inside it."""

    def __init__(self, thinking: Thinking, *, must_end: bool) -> None:
        allowed = np.zeros(32 * mask_words(thinking.vocab_size, thinking.ends), dtype=np.bool_)
        allowed[: thinking.vocab_size] = True
        allowed[list(thinking.ends)] = True
        self.anything: Bits = np.packbits(allowed, bitorder="little").view(np.int32)
        allowed[list(thinking.never)] = False
        if must_end:  # a thought that ends the answer would leave its form unsaid
            allowed[list(thinking.ends)] = False
        allowed[thinking.end] = True
        self.thought: Bits = np.packbits(allowed, bitorder="little").view(np.int32)


def _with(row: Bits, token: int) -> Bits:
    row = row.copy()
    row.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)
    return row
