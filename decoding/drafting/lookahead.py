"""Lookahead decoding (Fu et al. 2024, arXiv:2402.02057): `lookahead`.

A window of W columns runs Jacobi iterations ahead of the text and keeps the last N - 1 of them:

    newest token -> a1 -> a2 -> ... -> aW        the oldest iteration, a chain
                     |     |            |
                     b1    b2           bW       each later one hangs below it, column by column

A column and its next prediction form an n-gram of the model's own trajectory. N-grams that begin
with the newest token are draft tokens, verified beside the window, several in one pass.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from math import inf
from random import Random
from typing import Final

from pydantic import BaseModel, Field

from ...registry import STRICT
from ..sampling import Row
from .base import DraftContext, Drafter, Drafting
from .draft import Draft

_SEED_TOKENS: Final = 4096
_FIRST_WORTH: Final = 1.0
_WEIGHT: Final = 0.05
"""Weight of a new observation in `Worth`."""
_FIRST_PAUSE, _LONGEST_PAUSE = 64, 4096
_TRIAL_PASSES: Final = 4


class LookaheadParameters(BaseModel):
    """`window`: columns that iterate ahead. `ngram`: tokens of an n-gram (N).

    `candidates`: n-grams verified in a pass. A pass has (window + candidates) x (ngram - 1) rows
    beside the newest token's. `adaptive`: leave out the window, or n-grams too, where they do not
    pay.
    """

    model_config = STRICT

    window: int = Field(default=7, ge=0, le=32)
    ngram: int = Field(default=5, ge=2, le=16)
    candidates: int = Field(default=7, ge=0, le=32)
    adaptive: bool = True


class NgramPool:
    """N-grams by their first token; the newest `most` are kept for each token."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: dict[int, OrderedDict[tuple[int, ...], bool]] = {}

    def add(self, ngram: Sequence[int], *, is_text: bool) -> None:
        """Add an n-gram as the newest of its first token. `is_text`: it is from the text itself."""
        first, rest = ngram[0], tuple(ngram[1:])
        kept = self._of.setdefault(first, OrderedDict())
        kept[rest] = is_text or kept.get(rest, False)
        kept.move_to_end(rest)
        if len(kept) > self._most:
            kept.popitem(last=False)

    def after(self, token: int) -> list[tuple[tuple[int, ...], bool]]:
        """N-grams after `token`, newest first, and whether each is from the text."""
        return list(reversed(self._of.get(token, {}).items()))


class Worth:
    """What the pool and the window have lately been worth, in accepted tokens at each position.

    It learns from all new text, drafted or not: once the tokens after a position are known, so is
    what the pool's draft there would have got right.

    `of_rank`: tokens that the newest n-gram of a token gets right, those that the second newest
    adds, and so on; n-grams of the text only. `of_window`: tokens that the window's n-grams add to
    those; updated only where a window has run lately. `since_window`: tokens since it last ran.
    """

    def __init__(self, candidates: int) -> None:
        self.of_rank = [_FIRST_WORTH / 2**rank for rank in range(candidates)]
        self.of_window = _FIRST_WORTH
        self.since_window = 0
        self._pause = _FIRST_PAUSE

    def observe(
        self, paths: Sequence[tuple[tuple[int, ...], bool]], came: Sequence[int], *, windowed: bool
    ) -> None:
        """Learn from one position: the pool has `paths` after its token, and `came` followed it."""
        reached = from_text = 0
        for rank, (path, is_text) in enumerate(paths):
            right = _common(path, came)
            beyond = max(0, right - reached)
            self.of_rank[rank] += _WEIGHT * (beyond * is_text - self.of_rank[rank])
            reached = max(reached, right)
            from_text = max(from_text, right * is_text)
        if windowed:
            self.of_window += _WEIGHT * (reached - from_text - self.of_window)

    def take_trial(self) -> bool:
        """Whether the window should run for a while whatever its worth; more and more rarely."""
        if self.since_window < self._pause:
            return False
        self.since_window = 0
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True


def _common(path: Sequence[int], came: Sequence[int]) -> int:
    """Length of the common prefix."""
    for at, (draft_token, token) in enumerate(zip(path, came, strict=False)):
        if draft_token != token:
            return at
    return min(len(path), len(came))


class _Tree:
    """Draft tokens and their parents; paths share their common prefix."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def add(self, parent: int, token: int) -> int:
        """Index of the draft token `token` below `parent`; added if there is none."""
        found = self._children.get((parent, token))
        if found is None:
            found = self._children[parent, token] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
        return found

    def add_path(self, tokens: Iterable[int]) -> None:
        """Add a path that follows the newest token."""
        at = -1
        for token in tokens:
            at = self.add(at, token)

    def add_apart(self, parent: int, token: int) -> int:
        """Add a draft token, even if `parent` has an equal one; returns its index."""
        self.tokens.append(token)
        self.parents.append(parent)
        return len(self.tokens) - 1


class _Lookahead(Drafting):
    def __init__(
        self, parameters: LookaheadParameters, row: Row, worth: Worth, *, trees: bool
    ) -> None:
        self._parameters = parameters
        self._trees = trees
        self._row = row
        self._worth = worth
        self._random = Random(row.sampling.seed)
        self._pool = NgramPool(max(1, parameters.candidates))
        self._known = 0
        # levels[l][j]: the token of iteration l in column j; level 0 is the oldest.
        self._levels: list[list[int]] = [
            self._fresh(parameters.window) for _ in range(parameters.ngram - 1)
        ]
        self._top: list[int] = []  # indices in the last draft of the newest level's tokens
        self._trial_passes = 0
        self._windowed_until = 0  # positions up to here may have n-grams from the window

    @property
    def fixed(self) -> bool:
        """See `Drafting`."""
        return not self._parameters.adaptive

    def sizes(self, limit: int, worth: float) -> list[tuple[int, float]]:
        """See `Drafting`. The newest n-grams, one by one, then all of them and the window."""
        self._harvest_text(judge=self._known > 0)
        window = self._window_rows(limit)
        if not self._parameters.adaptive:
            whole = len(self._candidates(limit).tokens) + window
            return [(whole, 0.0)] if whole else []
        found: list[tuple[int, float]] = []
        expected, reach = 0.0, min(limit, self._parameters.ngram - 1)
        tree = _Tree()
        for (path, _), of_rank in zip(self._paths(), self._worth.of_rank, strict=False):
            tree.add_path(path[:reach])
            expected += of_rank
            found.append((len(tree.tokens), min(expected, reach)))
        if window:
            if self._trial_passes == 0 and self._worth.take_trial():
                self._trial_passes = _TRIAL_PASSES
            gain = inf if self._trial_passes else self._worth.of_window
            found.append((len(tree.tokens) + window, min(expected, reach) + gain))
        return found

    def propose(self, size: int, limit: int) -> Draft:
        """See `Drafting`."""
        tree = self._candidates(limit)
        self._top = []
        window = self._window_rows(limit)
        if window and size >= len(tree.tokens) + window:
            self._add_window(tree)
        return Draft(tree.tokens[:size], tree.parents[:size])

    def learn(self, draft: Draft, predictions: Sequence[int], accepted: Sequence[int]) -> None:
        """See `Drafting`."""
        if self._top:
            self._iterate(predictions, 1 + len(accepted))
            self._trial_passes = max(0, self._trial_passes - 1)
            self._windowed_until = len(self._row.tokens) + self._parameters.window
            self._worth.since_window = 0

    def _paths(self) -> list[tuple[tuple[int, ...], bool]]:
        if not self._parameters.candidates:
            return []
        paths = self._pool.after(self._row.tokens[-1])
        return paths if self._trees else paths[:1]

    def _candidates(self, limit: int) -> _Tree:
        tree = _Tree()
        reach = min(limit, self._parameters.ngram - 1)
        for path, _ in self._paths():
            tree.add_path(path[:reach])
        return tree

    def _window_rows(self, limit: int) -> int:
        """Rows of the window; 0 near the end of the answer, and where drafts may not branch."""
        if not self._trees:
            return 0
        depth = self._parameters.window + self._parameters.ngram - 2
        return self._parameters.window * (self._parameters.ngram - 1) if depth <= limit else 0

    def _add_window(self, tree: _Tree) -> None:
        column_ends: list[int] = []
        at = -1
        for token in self._levels[0]:
            at = tree.add_apart(at, token)
            column_ends.append(at)
        for level in self._levels[1:]:
            column_ends = [
                tree.add_apart(parent, token)
                for parent, token in zip(column_ends, level, strict=True)
            ]
        self._top = column_ends

    def _iterate(self, predictions: Sequence[int], advanced: int) -> None:
        """One Jacobi iteration: pool the columns, drop the oldest level, move with the text."""
        newest = [predictions[1 + index] for index in self._top]
        for column in zip(*self._levels, newest, strict=True):
            self._pool.add(column, is_text=False)
        self._top = []
        # A token of level l > 0 is one position further ahead than the one above it, so the levels
        # that remain have moved by one token already.
        moved = advanced - 1
        fresh = min(moved, self._parameters.window)
        self._levels = [
            [*level[moved:], *self._fresh(fresh)] for level in (*self._levels[1:], newest)
        ]

    def _harvest_text(self, *, judge: bool) -> None:
        """Add the new text's n-grams to the pool. `judge`: first observe what the pool would have
        drafted at each position."""
        tokens, n = self._row.tokens, self._parameters.ngram
        first = max(0, self._known - n + 1, len(tokens) - _SEED_TOKENS)
        for start in range(first, len(tokens) - n + 1):
            if judge:
                paths = self._pool.after(tokens[start])[: self._parameters.candidates]
                came = tokens[start + 1 : start + n]
                self._worth.observe(paths, came, windowed=start < self._windowed_until)
                self._worth.since_window += 1
            self._pool.add(tokens[start : start + n], is_text=True)
        self._known = len(tokens)

    def _fresh(self, count: int) -> list[int]:
        tokens = self._row.tokens
        return [tokens[self._random.randrange(len(tokens))] for _ in range(count)]


class Lookahead(Drafter[LookaheadParameters]):
    """Drafts n-grams from a pool that the model's own Jacobi iterations fill."""

    name = "lookahead"
    parameters = LookaheadParameters
    summary = "Lookahead decoding: verifies n-grams of the model's own trajectory; the same text."

    def start(self, parameters: LookaheadParameters, row: Row, context: DraftContext) -> Drafting:
        """See `Drafter`."""
        name = f"lookahead {parameters.window} {parameters.ngram} {parameters.candidates}"
        worth = context.memory.setdefault(name, Worth(parameters.candidates))
        return _Lookahead(parameters, row, worth, trees=context.trees)


LOOKAHEAD = Lookahead()
