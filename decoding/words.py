"""Bad words: which tokens would complete a word that a text must not contain.

An automaton of Aho and Corasick (1975) over bytes. A state is the longest suffix of the text that
is a prefix of a word; its `fail` state is the next shorter such suffix. States are built when a
text first reaches them, so that hundreds of long words cost only what is read of them.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np

from .pieces import Ids, Pieces, successor

_MOST_STEPS: Final = 1 << 18
"""Steps and forbidden ids that are cached; beyond these numbers the cache is cleared."""
_MOST_IDS: Final = 1 << 21


class Words:
    """The bad words of one request, shared by all of its choices. State 0 is the beginning.

    Not thread-safe.
    """

    def __init__(self, words: Sequence[bytes], pieces: Pieces) -> None:
        self.longest = max(map(len, words), default=0)
        self._pieces = pieces
        self._words = sorted(set(words))
        self._lengths = np.array([len(word) for word in self._words])
        # Of each state: its length, the range of words that begin with it, and its fail state.
        self._depth = [0]
        self._range = [(0, len(self._words))]
        self._fail = [0]
        self._states: dict[tuple[int, int], int] = {}
        self._steps: dict[int, int] = {}
        self._forbidden: dict[int, Ids] = {}
        self._ids = 0

    @cached_property
    def always(self) -> Ids:
        """Tokens that contain a whole word themselves."""
        found = np.zeros(len(self._pieces.of), dtype=np.bool_)
        for word in self._words:
            found[self._pieces.containing(word)] = True
        return np.flatnonzero(found)

    def after(self, state: int, token: int) -> int:
        """The state after a further token."""
        pieces = self._pieces.of
        if token >= len(pieces):
            return state
        for byte in pieces[token]:
            found = self._steps.get(state << 8 | byte)
            state = self._step(state, byte) if found is None else found
        return state

    def at_end_of(self, tokens: Sequence[int]) -> int:
        """The state after a text."""
        pieces, length, first = self._pieces.of, 0, len(tokens)
        while first > 0 and length < self.longest:
            first -= 1
            length += len(pieces[tokens[first]]) if tokens[first] < len(pieces) else 0
        state = 0
        for token in tokens[first:]:
            state = self.after(state, token)
        return state

    def forbidden(self, state: int) -> Ids:
        """Tokens that would complete a word that the text has begun, in addition to `always`."""
        shorter: list[int] = []
        while state and state not in self._forbidden:
            shorter.append(state)
            state = self._fail[state]
        ids = self._forbidden.get(state, np.empty(0, dtype=np.int64))
        for each in reversed(shorter):
            own = self._completing(each)
            ids = np.unique(np.concatenate([ids, *own])) if own else ids
            if self._ids > _MOST_IDS:
                self._forbidden.clear()
                self._ids = 0
            self._forbidden[each] = ids
            self._ids += ids.size + 1
        return ids

    def _completing(self, state: int) -> list[Ids]:
        """Tokens that begin with the missing rest of a word whose prefix is this state."""
        depth, (first, last) = self._depth[state], self._range[state]
        missing = self._lengths[first:last] - depth
        near = np.flatnonzero((missing > 0) & (missing <= self._pieces.longest))
        rests = {self._words[first + at][depth:] for at in near.tolist()}
        found = [self._pieces.beginning_with(rest) for rest in rests]
        return [ids for ids in found if ids.size]

    def _step(self, state: int, byte: int) -> int:
        """The state after a further byte: that of the first fail state which can take the byte."""
        passed: list[tuple[int, int | None]] = []
        while True:
            known = self._steps.get(state << 8 | byte)
            if known is not None:
                found = known
                break
            passed.append((state, self._child(state, byte)))
            if state == 0:
                found = 0
                break
            state = self._fail[state]
        if len(self._steps) > _MOST_STEPS:
            self._steps.clear()
        for at, child in reversed(passed):
            if child is not None:
                self._fail[child] = found
                found = child
            self._steps[at << 8 | byte] = found
        return found

    def _child(self, state: int, byte: int) -> int | None:
        """The state one byte longer; None: no word begins with it."""
        depth, (first, last) = self._depth[state], self._range[state]
        head = self._words[first][:depth] + bytes([byte])
        first = bisect_left(self._words, head, first, last)
        if first == last or not self._words[first].startswith(head):
            return None
        known = self._states.get((depth + 1, first))
        if known is not None:
            return known
        behind = successor(head)
        last = last if behind is None else bisect_left(self._words, behind, first, last)
        child = self._states[depth + 1, first] = len(self._depth)
        self._depth.append(depth + 1)
        self._range.append((first, last))
        self._fail.append(0)
        return child
