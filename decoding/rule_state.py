"""The state of a row's rules, so that a step reads only the newest tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .pieces import Ids

if TYPE_CHECKING:
    from .compiled_rules import CompiledRules

_FEW = 8


class RuleState:
    """The state of one row's rules. `read`: how many of its tokens the state covers.

    `word_state`: the state of `Words` after these tokens. `ids`, `counts`: int64 and float32 `[M]`,
    the tokens that penalties look at and how often each is in the answer. Arrays are replaced and
    never changed, so that rows of a draft, and choices that fork off, share them.
    """

    __slots__ = ("counts", "ids", "read", "rules", "word_state")

    def __init__(self, rules: "CompiledRules", tokens: Sequence[int], answer_start: int) -> None:
        self.rules = rules
        self.read = answer_start
        self.word_state = 0 if rules.words is None else rules.words.at_end_of(tokens[:answer_start])
        self.ids: Ids = np.empty(0, dtype=np.int64)
        if rules.of.repetition_penalty != 1.0:  # the only one that counts the prompt
            self.ids = np.unique(np.array(tokens[:answer_start], dtype=np.int64))
        self.counts: np.ndarray[Any, Any] = np.zeros(self.ids.size, dtype=np.float32)

    def catch_up(self, tokens: Sequence[int]) -> "RuleState":
        """Read the tokens that were appended since."""
        if len(tokens) > self.read:
            self._append(tokens[self.read :])
            self.read = len(tokens)
        return self

    def fork(self) -> "RuleState":
        """A copy for another row, which may continue differently."""
        copy = object.__new__(RuleState)
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        return copy

    def followed_by(self, token: int) -> "RuleState":
        """The state of a row one token longer."""
        longer = self.fork()
        longer._append((token,))
        longer.read += 1
        return longer

    def _append(self, tokens: Sequence[int]) -> None:
        words = self.rules.words
        if words is not None:
            for token in tokens:
                self.word_state = words.after(self.word_state, token)
        if not self.rules.of.penalises:
            return
        if len(tokens) <= _FEW:
            for token in tokens:
                self._count(token)
            return
        ids, of = np.unique(
            np.concatenate([self.ids, np.array(tokens, dtype=np.int64)]), return_inverse=True
        )
        weights = np.concatenate([self.counts, np.ones(len(tokens), dtype=np.float32)])
        self.ids = ids
        self.counts = np.bincount(of, weights=weights).astype(np.float32)

    def _count(self, token: int) -> None:
        at = np.flatnonzero(self.ids == token)
        if at.size:
            self.counts = self.counts.copy()
            self.counts[at[0]] += 1
        else:
            self.ids = np.append(self.ids, token)
            self.counts = np.append(self.counts, np.float32(1))
