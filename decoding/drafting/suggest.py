"""Draft tokens with a chance each: what followed the last tokens before, here and in earlier
answers.

Statistics of n-grams draft as well as a small model does where text repeats itself (SuffixDecoding,
Oliaro et al. 2024, arXiv:2411.04975, shares them among requests). Three sources say what may come
next:

    followers    what followed the last 1 to 4 tokens in earlier answers
    history      what followed the longest run of last tokens that this sequence has had before
    carried      what a pass has predicted for that place

How likely a draft token is was counted where draft tokens rested on the same: how often it followed
how long a context, how long the run is, whether earlier requests with such a prompt led to that
token. (Text compression does the same for symbols never seen in a context: Bloom 1998, "Solving the
problems of context modeling".) All draft tokens teach, drafted or not, for the next token is known
in any case.

The draft tokens are a tree: the likeliest paths, grown where another guess is likeliest to be
right.

`compiled.py` does the same in compiled code; this serves where there is none, and says how.
"""

import heapq
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from .draft import Draft
from .followers import LONGEST_CONTEXT, Followers
from .history import History
from .lexicon import Lexicon

_MANY: Final = 128
"""Observations after which a trust counts the old ones half."""
LEAST_CHANCE: Final = 0.02
"""A draft token less likely than this is none."""
_LONGEST_MATCH: Final = 8
_CARRIED_DEPTHS: Final = 8


class Trust:
    """How often draft tokens of one kind are right: a share that follows the last hundred or so."""

    __slots__ = ("right", "seen")

    def __init__(self, share: float) -> None:
        self.right, self.seen = 4 * share, 4.0

    @property
    def share(self) -> float:
        """The estimate, 0 to 1."""
        return self.right / self.seen

    def observe(self, *, right: bool) -> None:
        """Learn from one draft token."""
        self.right += right
        self.seen += 1
        if self.seen > _MANY:
            self.right /= 2
            self.seen /= 2


class Memory:
    """What the requests that may share it have taught: what follows what, and whom to trust."""

    def __init__(self) -> None:
        self.followers = Followers()
        self.lexicon = Lexicon()
        # By what the draft tokens rest on: see `Suggester._next`.
        self.trusts: dict[int, Trust] = {}

    def suggester(
        self,
        prompt: Sequence[int],
        *,
        longest: int,
        shortest: int,
        shared: bool,
        trees: bool = True,
    ) -> "Suggester":
        """One for a sequence with this prompt.

        `longest`, `shortest`: runs of last tokens that are looked for in its past. `shared`: guess
        from what this memory holds, and add to it. `trees`: draft tokens may branch.
        """
        return Suggester(self, prompt, longest, shortest, shared=shared, trees=trees)


class _Node:
    """A draft token, or the newest token.

    `chance`: that all draft tokens up to here are right. `parent`: the draft token before it, -1
    the newest token. `follows`, `carried`: what the history and the last pass say comes behind it.
    `asked`: how far each token was trusted to come next. `children`: the draft tokens among them.
    """

    __slots__ = (
        "asked", "carried", "chance", "children", "depth", "follows", "parent", "tail", "token",
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
        self.asked: dict[int, Trust] = {}
        self.children: dict[int, _Node] = {}

    def child(self, token: int, chance: float, number: int) -> "_Node":
        """The guess `token` behind this one, which is guess `number`."""
        follows, carried = self.follows, self.carried
        return _Node(
            token,
            chance,
            self.depth + 1,
            number,
            (*self.tail[1 - LONGEST_CONTEXT :], token),
            follows[1:] if follows and follows[0] == token else (),
            carried[1:] if carried and carried[0] == token else (),
        )


class Suggester:
    """Makes trees of draft tokens for one sequence, and learns from what came instead."""

    def __init__(
        self,
        memory: Memory,
        prompt: Sequence[int],
        longest: int,
        shortest: int,
        *,
        shared: bool,
        trees: bool,
    ) -> None:
        self._trees = trees
        self._memory = memory if shared else Memory()
        self._history = History(prompt)
        self._tail = tuple(prompt[-LONGEST_CONTEXT:])
        self._longest = min(longest, _LONGEST_MATCH)
        self._shortest = shortest
        self._shared = shared
        self._match = 0
        self._prompt = tuple(prompt)
        self._expected = memory.lexicon.expected(self._prompt) if shared else {}
        self._root: _Node | None = None
        self._nodes: list[_Node] = []

    def suggest(
        self,
        count: int,
        limit: int,
        carried: Sequence[int] = (),
        worth: float = LEAST_CHANCE,
    ) -> int:
        """Make at most `count` draft tokens, none more than `limit` tokens ahead; returns how many.

        `carried`: tokens that a pass has predicted for the next places. `worth`: the least chance
        of a draft token.
        """
        self._match, follows = self._history.match(
            min(count, limit), longest=self._longest, shortest=self._shortest
        )
        node = self._root = _Node(-1, 1.0, 0, -1, self._tail, follows, carried)
        nodes = self._nodes = []
        # (minus the chance, a number that breaks ties, the draft token before, its number, the
        # token)
        waiting: list[tuple[float, int, _Node, int, int]] = []
        made = 0
        while True:
            if node.depth < limit:
                following = self._next(node, worth)
                for token, chance in following if self._trees else following[:1]:
                    made += 1
                    heapq.heappush(waiting, (-chance, made, node, len(nodes) - 1, token))
            if not waiting or len(nodes) >= count:
                return len(nodes)
            chance, _, before, number, token = heapq.heappop(waiting)
            node = before.children[token] = before.child(token, -chance, number)
            nodes.append(node)

    def expected(self) -> list[float]:
        """How many of the first 1, 2, 3 and so on draft tokens will be right."""
        return list(accumulate(node.chance for node in self._nodes))

    def draft(self, size: int) -> Draft:
        """The first `size` draft tokens, each before those behind it, the likelier branches first.

        So the likeliest path stands together, and its keys need not be moved when it is right.
        """
        nodes = self._nodes[:size]
        behind: list[list[int]] = [[] for _ in range(len(nodes) + 1)]
        for number, node in enumerate(nodes):
            behind[node.parent].append(number)
        tokens: list[int] = []
        parents: list[int] = []
        waiting = [(number, -1) for number in reversed(behind[-1])]
        while waiting:
            number, parent = waiting.pop()
            at = len(tokens)
            tokens.append(nodes[number].token)
            parents.append(parent)
            waiting += [(child, at) for child in reversed(behind[number])]
        is_chain = len(nodes) == 0 or nodes[-1].depth == len(nodes)
        return Draft(tokens, None if is_chain else parents)

    def learn(self, tokens: Sequence[int]) -> None:
        """The sequence's tokens are these now: as drafted, or not."""
        new = tokens[len(self._history) :]
        if not new:
            return
        node = self._root
        for token in new:
            if node is None:
                break
            for draft_token, trust in node.asked.items():
                trust.observe(right=draft_token == token)
            node = node.children.get(token)
        self._root = None
        self._nodes = []
        if self._shared:
            behind = list(tokens[-(len(new) + LONGEST_CONTEXT) :])
            self._memory.followers.learn(behind, len(behind) - len(new))
        self._history.extend(new)
        self._tail = tuple(tokens[-LONGEST_CONTEXT:])

    def finish(self, tokens: Sequence[int]) -> None:
        """The sequence has ended with these tokens."""
        self.learn(tokens)
        if self._shared:
            self._memory.lexicon.learn(self._prompt, tokens[len(self._prompt) :])

    def _next(self, node: _Node, worth: float) -> list[tuple[int, float]]:
        """The draft tokens that may follow a draft token, and how likely it is that they are
        reached."""
        memory = self._memory
        evidence = memory.followers.after(node.tail) if self._shared else {}
        if node.follows:
            length = min(self._match + node.depth, _LONGEST_MATCH)
            token, share = node.follows[0], 0.2 + 0.6 * length / _LONGEST_MATCH
            known, grounds = evidence.get(token, (0.0, 0))
            evidence[token] = max(known, share), grounds + (length << 12)
        if node.carried:
            token, share = node.carried[0], 0.3
            known, grounds = evidence.get(token, (0.0, 0))
            depth = min(node.depth + 1, _CARRIED_DEPTHS)
            evidence[token] = max(known, share), grounds + (depth << 16)
        trusts = memory.trusts
        asked = node.asked = {}
        expected = self._expected
        for token, (share, grounds) in evidence.items():
            if token in expected:
                grounds += expected[token] << 20
            trust = trusts.get(grounds)
            if trust is None:
                trust = trusts[grounds] = Trust(share)
            asked[token] = trust
        ordered = asked.items()
        if len(asked) > 1:
            ordered = sorted(ordered, key=_share, reverse=True)
        found: list[tuple[int, float]] = []
        left = 1.0
        for token, trust in ordered:
            # Together they cannot be likelier than certain.
            sure = min(trust.share, left)
            left -= sure
            sure *= node.chance
            if sure < worth:
                break
            found.append((token, sure))
        return found


def _share(of: tuple[int, Trust]) -> float:
    return of[1].share
