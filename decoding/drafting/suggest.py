"""Guesses with a chance each: what followed the last tokens before, here and in earlier answers.

Statistics of n-grams draft as well as a small model does where text repeats itself (SuffixDecoding,
Oliaro et al. 2024, arXiv:2411.04975, shares them among requests). Three sources say what may come
next, and learn how far they can be trusted:

    followers    what followed the last 1 to 4 tokens in earlier answers
    history      what followed the longest run of last tokens that this sequence has had before
    carried      what a pass has predicted for that place

The guesses are a tree: the likeliest paths, grown where another guess is likeliest to be right.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from .draft import Draft
from .history import History

_LONGEST_CONTEXT: Final = 4
_MAX_CONTEXTS: Final = 100_000
_MOST_TOKENS: Final = 4
_FORGET_AT: Final = 64
_LEAST_CHANCE: Final = 0.02
"""A guess less likely than this is none."""
_LONGEST_MATCH: Final = 8
_CARRIED_DEPTHS: Final = 8


class Followers:
    """What follows short contexts, over many answers; the oldest contexts are forgotten first."""

    def __init__(self, most: int = _MAX_CONTEXTS) -> None:
        self._most = most
        # How often each token came after a context; the tokens that came least are forgotten.
        self._of: dict[tuple[int, ...], dict[int, float]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def learn(self, tokens: Sequence[int], first: int) -> None:
        """Take in `tokens[first:]`, each with the tokens before it."""
        known = self._of
        for at in range(max(1, first), len(tokens)):
            token = tokens[at]
            for length in range(1, min(_LONGEST_CONTEXT, at) + 1):
                context = tuple(tokens[at - length : at])
                counts = known.get(context)
                if counts is None:
                    known[context] = {token: 1.0}
                    if len(known) > self._most:
                        del known[next(iter(known))]
                else:
                    _count(counts, token)

    def after(self, tail: Sequence[int]) -> dict[int, float]:
        """Tokens that may follow `tail`, with the best share that any context gives them."""
        found: dict[int, float] = {}
        for length in range(1, min(_LONGEST_CONTEXT, len(tail)) + 1):
            counts = self._of.get(tuple(tail[-length:]))
            if counts is None:
                break  # what a context has not seen, no longer one has
            total = sum(counts.values()) + 1.0
            for token, count in counts.items():
                share = count / total
                if share > found.get(token, 0.0):
                    found[token] = share
        return found


def _count(counts: dict[int, float], token: int) -> None:
    if token not in counts and len(counts) == _MOST_TOKENS:
        rarest = min(counts, key=counts.__getitem__)
        counts[rarest] -= 1.0
        if counts[rarest] <= 0:
            del counts[rarest]
            counts[token] = 1.0
        return
    counts[token] = counts.get(token, 0.0) + 1.0
    if counts[token] > _FORGET_AT:
        for each in counts:
            counts[each] /= 2


class Trust:
    """How often guesses of one kind are right: a share that follows the last hundred or so."""

    __slots__ = ("right", "seen")

    def __init__(self, share: float) -> None:
        self.right, self.seen = 4 * share, 4.0

    @property
    def share(self) -> float:
        """The estimate, 0 to 1."""
        return self.right / self.seen

    def observe(self, *, right: bool) -> None:
        """Learn from one guess."""
        self.right += right
        self.seen += 1
        if self.seen > 2 * _FORGET_AT:
            self.right /= 2
            self.seen /= 2


class Memory:
    """What the requests that may share it have taught: followers, and which source to trust."""

    def __init__(self) -> None:
        self.followers = Followers()
        # The longer the match, the likelier that the text goes on as it did.
        self.of_match = [Trust(0.2 + 0.6 * n / _LONGEST_MATCH) for n in range(_LONGEST_MATCH + 1)]
        self.of_carried = [Trust(0.3) for _ in range(_CARRIED_DEPTHS)]


@dataclass(slots=True, kw_only=True)
class _Node:
    """A guess, or the newest token.

    `chance`: that all guesses up to here are right. `parent`: the guess before it, -1 the newest
    token. `history`, `carried`: what these sources say comes next, and how they are trusted.
    """

    token: int
    chance: float
    depth: int
    parent: int
    tail: tuple[int, ...]
    follows: list[int]
    carried: Sequence[int]
    history: tuple[int, Trust] | None = None
    carry: tuple[int, Trust] | None = None
    children: dict[int, "_Node"] = field(default_factory=dict)


class Suggester:
    """Makes trees of guesses for one sequence, and learns from what came instead."""

    def __init__(
        self, memory: Memory, tokens: Sequence[int], *, longest: int, shortest: int, shared: bool
    ) -> None:
        self._memory = memory
        self._history = History(tokens)
        self._tail = tuple(tokens[-_LONGEST_CONTEXT:])
        self._longest = min(longest, _LONGEST_MATCH)
        self._shortest = shortest
        self._shared = shared
        self._match = 0
        self._root: _Node | None = None
        self._nodes: list[_Node] = []

    def suggest(self, count: int, limit: int, carried: Sequence[int] = ()) -> int:
        """Make at most `count` guesses, none more than `limit` tokens ahead; returns how many.

        `carried`: tokens that a pass has predicted for the next places.
        """
        self._match, follows = self._history.match(
            min(count, limit), longest=self._longest, shortest=self._shortest
        )
        root = self._root = _Node(
            token=-1, chance=1.0, depth=0, parent=-1, tail=self._tail, follows=follows,
            carried=carried,
        )  # fmt: skip
        self._nodes = []
        waiting: list[tuple[float, int, _Node]] = []
        made = 0
        self._expand(root, -1)
        while True:
            if limit > 0:
                for child in root.children.values():
                    made += 1
                    heapq.heappush(waiting, (-child.chance, made, child))
            if not waiting or len(self._nodes) >= count:
                return len(self._nodes)
            _, _, root = heapq.heappop(waiting)
            self._nodes.append(root)
            if root.depth < limit:
                self._expand(root, len(self._nodes) - 1)

    def expected(self, size: int) -> float:
        """How many of the first `size` guesses will be right."""
        return sum(node.chance for node in self._nodes[:size])

    def draft(self, size: int) -> Draft:
        """The first `size` guesses."""
        nodes = self._nodes[:size]
        parents = [node.parent for node in nodes]
        is_chain = parents == list(range(-1, len(nodes) - 1))
        return Draft([node.token for node in nodes], None if is_chain else parents)

    def learn(self, tokens: Sequence[int]) -> None:
        """The sequence's tokens are these now: as guessed, or not."""
        new = tokens[len(self._history) :]
        node = self._root
        for token in new:
            if node is None:
                break
            for source in (node.history, node.carry):
                if source is not None:
                    source[1].observe(right=source[0] == token)
            node = node.children.get(token)
        self._root = None
        self._nodes = []
        if self._shared:
            behind = list(tokens[-(len(new) + _LONGEST_CONTEXT) :])
            self._memory.followers.learn(behind, len(behind) - len(new))
        self._history.extend(new)
        self._tail = tuple(tokens[-_LONGEST_CONTEXT:])

    def _expand(self, node: _Node, index: int) -> None:
        """Give a guess the guesses that may follow it."""
        memory = self._memory
        chances = memory.followers.after(node.tail) if self._shared else {}
        if node.follows:
            match = min(self._match + node.depth, _LONGEST_MATCH)
            node.history = node.follows[0], memory.of_match[match]
        if node.carried:
            depth = min(node.depth, _CARRIED_DEPTHS - 1)
            node.carry = node.carried[0], memory.of_carried[depth]
        for source in (node.history, node.carry):
            if source is not None:
                token, trust = source
                chances[token] = max(chances.get(token, 0.0), trust.share)
        left = 1.0
        for token, chance in sorted(chances.items(), key=lambda item: -item[1]):
            # Together they cannot be likelier than certain.
            sure = min(chance, left)
            left -= sure
            if node.chance * sure < _LEAST_CHANCE:
                break
            node.children[token] = _Node(
                token=token,
                chance=node.chance * sure,
                depth=node.depth + 1,
                parent=index,
                tail=(*node.tail[1 - _LONGEST_CONTEXT :], token),
                follows=node.follows[1:] if node.follows[:1] == [token] else [],
                carried=node.carried[1:] if node.carried[:1] == [token] else (),
            )
