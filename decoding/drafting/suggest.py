"""Draft tokens with acceptance probabilities: what followed the last tokens before, in this
sequence and in earlier answers.

N-gram statistics draft as well as a small draft model where text repeats itself (SuffixDecoding,
Oliaro et al. 2024, arXiv:2411.04975, shares them among requests). There are three sources:

    followers    what followed the last 1 to 4 tokens in earlier answers
    history      what followed the longest run of last tokens that occurred earlier in this sequence
    carried      what the last pass predicted for that place

A draft token's acceptance probability is the measured share of right ones among draft tokens with
the same evidence: the length of the context, how often the token followed it, the length of the
run, whether earlier requests with such a prompt led to that token. (Text compression does the same
for symbols never seen in a context: Bloom 1998, "Solving the problems of context modeling".) Every
candidate is counted, drafted or not, because the next token becomes known in any case.

The draft is a tree of the likeliest paths: it grows by the token that is likeliest to be accepted.

`compiled.py` does the same in compiled code. This is the reference, and the fallback where the
library is not available.
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
"""Observations after which a trust halves the weight of the old ones."""
LEAST_CHANCE: Final = 0.02
"""Tokens of a lower acceptance probability are not drafted."""
_LONGEST_MATCH: Final = 8
_CARRIED_DEPTHS: Final = 8


class Trust:
    """How often candidates with equal evidence are right, over about the last hundred."""

    __slots__ = ("right", "seen")

    def __init__(self, share: float) -> None:
        self.right, self.seen = 4 * share, 4.0

    @property
    def share(self) -> float:
        """The estimate, 0 to 1."""
        return self.right / self.seen

    def observe(self, *, right: bool) -> None:
        """Count one candidate."""
        self.right += right
        self.seen += 1
        if self.seen > _MANY:
            self.right /= 2
            self.seen /= 2


class Memory:
    """What suggesters share across requests: n-grams, a lexicon, and trust in kinds of evidence."""

    def __init__(self) -> None:
        self.followers = Followers()
        self.lexicon = Lexicon()
        # By evidence, packed into a number: see `Suggester._next`.
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
        """A suggester for a sequence with this prompt.

        `longest`, `shortest`: lengths of the runs of last tokens that are looked up in its history.
        `shared`: draft from this memory, and add to it. `trees`: drafts may branch.
        """
        return Suggester(self, prompt, longest, shortest, shared=shared, trees=trees)


class _Node:
    """A draft token, or the newest token.

    `chance`: that all draft tokens up to here are right. `parent`: the draft token before it, -1
    the newest token. `follows`, `carried`: what comes next by the history and by the last pass.
    `asked`: the trust in each candidate for the next token. `children`: those that were drafted.
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
        """The draft token `token` after this one, which is draft token `number`."""
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
    """Makes trees of draft tokens for one sequence, and learns from the tokens that came."""

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

        `carried`: tokens that the last pass predicted for the next places. `worth`: the least
        probability of a draft token.
        """
        self._match, follows = self._history.match(
            min(count, limit), longest=self._longest, shortest=self._shortest
        )
        node = self._root = _Node(-1, 1.0, 0, -1, self._tail, follows, carried)
        nodes = self._nodes = []
        # (minus the chance, tie-breaker, parent, the parent's number, token)
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
        """How many of the first 1, 2, 3, ... draft tokens will be right, on average."""
        return list(accumulate(node.chance for node in self._nodes))

    def draft(self, size: int) -> Draft:
        """The first `size` draft tokens in depth-first order, the likelier branches first.

        So the likeliest path is contiguous, and its keys need not be moved when it is accepted.
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
        """Learn from the new ones of the sequence's `tokens`, drafted or not."""
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
        """Learn from the whole sequence, which has ended with these tokens."""
        self.learn(tokens)
        if self._shared:
            self._memory.lexicon.learn(self._prompt, tokens[len(self._prompt) :])

    def _next(self, node: _Node, worth: float) -> list[tuple[int, float]]:
        """Draft tokens that may follow `node`, each with the probability that the path to it is
        right."""
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
            # The shares of all candidates may not exceed 1.
            sure = min(trust.share, left)
            left -= sure
            sure *= node.chance
            if sure < worth:
                break
            found.append((token, sure))
        return found


def _share(of: tuple[int, Trust]) -> float:
    return of[1].share
