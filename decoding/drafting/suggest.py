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
from itertools import islice
from operator import itemgetter
from typing import Final

from .draft import Draft
from .history import History

_LONGEST_CONTEXT: Final = 4
_MAX_CONTEXTS: Final = 50_000
_MOST_TOKENS: Final = 4
_FORGET_AT: Final = 64
_SEEN_OFTEN: Final = 4
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
                        for oldest in list(islice(known, self._most // 8 + 1)):
                            del known[oldest]
                else:
                    _count(counts, token)

    def after(self, tail: tuple[int, ...]) -> dict[int, float]:
        """Tokens that may follow `tail`, with their shares.

        The longest context counts; where it has hardly been seen, the best share of any.
        """
        found: dict[int, float] = {}
        known = self._of
        for start in range(max(0, len(tail) - _LONGEST_CONTEXT), len(tail)):
            counts = known.get(tail[start:])
            if counts is None:
                continue
            total = sum(counts.values()) + 1.0
            for token, count in counts.items():
                share = count / total
                if share > found.get(token, 0.0):
                    found[token] = share
            if total > _SEEN_OFTEN:
                break
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


class _Node:
    """A guess, or the newest token.

    `chance`: that all guesses up to here are right. `parent`: the guess before it, -1 the newest
    token. `history`, `carry`: what these sources say comes next, and how far they are trusted.
    """

    __slots__ = (
        "carried", "carry", "chance", "children", "depth", "follows", "history", "parent", "tail",
        "token",
    )  # fmt: skip

    def __init__(
        self,
        token: int,
        chance: float,
        depth: int,
        parent: int,
        tail: tuple[int, ...],
        follows: Sequence[int],
        carried: Sequence[int],
    ) -> None:
        self.token, self.chance, self.depth, self.parent = token, chance, depth, parent
        self.tail, self.follows, self.carried = tail, follows, carried
        self.history: tuple[int, Trust] | None = None
        self.carry: tuple[int, Trust] | None = None
        self.children: list[_Node] = []

    def child(self, token: int) -> "_Node | None":
        """The guess `token` behind this one, where there is one."""
        return next((child for child in self.children if child.token == token), None)


class Suggester:
    """Makes trees of guesses for one sequence, and learns from what came instead."""

    def __init__(
        self, memory: Memory, tokens: Sequence[int], *, longest: int, shortest: int, shared: bool
    ) -> None:
        self._memory = memory if shared else Memory()
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
        node = self._root = _Node(-1, 1.0, 0, -1, self._tail, follows, carried)
        self._nodes = []
        waiting: list[tuple[float, int, _Node]] = []
        made = 0
        while True:
            if node.depth < limit:
                self._expand(node, len(self._nodes) - 1)
                for child in node.children:
                    made += 1
                    heapq.heappush(waiting, (-child.chance, made, child))
            if not waiting or len(self._nodes) >= count:
                return len(self._nodes)
            node = heapq.heappop(waiting)[2]
            self._nodes.append(node)

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
            node = node.child(token)
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
            trust = memory.of_match[min(self._match + node.depth, _LONGEST_MATCH)]
            node.history = token, _ = node.follows[0], trust
            chances[token] = max(chances.get(token, 0.0), trust.share)
        if node.carried:
            trust = memory.of_carried[min(node.depth, _CARRIED_DEPTHS - 1)]
            node.carry = token, _ = node.carried[0], trust
            chances[token] = max(chances.get(token, 0.0), trust.share)
        ordered = chances.items()
        if len(chances) > 1:
            ordered = sorted(ordered, key=itemgetter(1), reverse=True)
        left = 1.0
        for token, chance in ordered:
            # Together they cannot be likelier than certain.
            sure = min(chance, left)
            left -= sure
            sure *= node.chance
            if sure < _LEAST_CHANCE:
                break
            follows, carried = node.follows, node.carried
            node.children.append(
                _Node(
                    token,
                    sure,
                    node.depth + 1,
                    index,
                    (*node.tail[1 - _LONGEST_CONTEXT :], token),
                    follows[1:] if follows and follows[0] == token else (),
                    carried[1:] if carried and carried[0] == token else (),
                )
            )
