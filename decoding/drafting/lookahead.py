"""Lookahead decoding (Fu et al. 2024, arXiv:2402.02057): `lookahead`.

A window of W columns runs Jacobi iterations ahead of the text and keeps the last N - 1 of them:

    newest token -> a1 -> a2 -> ... -> aW        the oldest iteration, a chain
                     |     |            |
                     b1    b2           bW       each later one hangs below it, column by column

What a column and its next prediction spell is an n-gram of the model's own making. N-grams that
begin with the newest token are verified beside the window, several in one pass.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from random import Random
from typing import Final

from pydantic import BaseModel, Field

from ..base import STRICT, DraftContext, Drafter, Drafting
from ..sampling import Row
from .acceptance import Acceptance
from .draft import Draft

_SEED_TOKENS: Final = 4096
_WORTH_A_TRIAL: Final = 1e6


class LookaheadParameters(BaseModel):
    """`window`: columns that iterate ahead. `ngram`: tokens of an n-gram (N).

    `candidates`: n-grams verified in a pass. A pass has (window + candidates) x (ngram - 1) rows
    beside the newest token's. `adaptive`: leave the window, or all of it, out where it does not
    pay.
    """

    model_config = STRICT

    window: int = Field(default=7, ge=0, le=32)
    ngram: int = Field(default=5, ge=2, le=16)
    candidates: int = Field(default=7, ge=0, le=32)
    adaptive: bool = True


class NgramPool:
    """N-grams by their first token; of each the newest `most` are kept."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: dict[int, OrderedDict[tuple[int, ...], None]] = {}

    def add(self, ngram: Sequence[int]) -> None:
        """Keep an n-gram, as the newest of its kind."""
        first, rest = ngram[0], tuple(ngram[1:])
        kept = self._of.setdefault(first, OrderedDict())
        kept[rest] = None
        kept.move_to_end(rest)
        if len(kept) > self._most:
            kept.popitem(last=False)

    def after(self, token: int) -> list[tuple[int, ...]]:
        """What may follow `token`, newest first."""
        return list(reversed(self._of.get(token, ())))


class _Tree:
    """Guesses and their parents; paths that begin alike share them."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def add(self, parent: int, token: int) -> int:
        """The guess `token` below `parent`, a new one where there is none."""
        found = self._children.get((parent, token))
        if found is None:
            found = self._children[parent, token] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
        return found

    def add_path(self, tokens: Iterable[int]) -> None:
        """A path from the newest token."""
        at = -1
        for token in tokens:
            at = self.add(at, token)

    def add_apart(self, parent: int, token: int) -> int:
        """A guess of its own, also where there is one like it."""
        self.tokens.append(token)
        self.parents.append(parent)
        return len(self.tokens) - 1


class _Lookahead(Drafting):
    def __init__(self, parameters: LookaheadParameters, row: Row) -> None:
        self._parameters = parameters
        self._row = row
        self._random = Random(row.sampling.seed)
        self._pool = NgramPool(max(1, parameters.candidates))
        self._known = 0
        # levels[l][j]: what iteration l says in column j; level 0 is the oldest.
        self._levels: list[list[int]] = [
            self._fresh(parameters.window) for _ in range(parameters.ngram - 1)
        ]
        self._top: list[int] = []  # of the last draft: the guesses of the newest level
        self._with_window = Acceptance()
        self._without_window = Acceptance()
        self._harvest_text()

    @property
    def fixed(self) -> bool:
        """See `Drafting`."""
        return not self._parameters.adaptive

    def sizes(self, limit: int) -> list[tuple[int, float]]:
        """See `Drafting`. Two sizes: the candidates alone, and with the window."""
        candidates = len(self._candidates(limit).tokens)
        window = self._window_rows(limit)
        reach = min(limit, self._parameters.ngram - 1)
        whole = candidates + window
        if not self._parameters.adaptive:
            return [(whole, 0.0)] if whole else []
        found: list[tuple[int, float]] = []
        if candidates:
            found.append((candidates, self._without_window.expected(reach)))
        if window:
            # What the window brings is what later passes find in the pool.
            is_trial = self._with_window.is_trial
            promise = _WORTH_A_TRIAL if is_trial else self._with_window.expected(reach)
            found.append((whole, promise))
        return found

    def propose(self, size: int, limit: int) -> Draft:
        """See `Drafting`."""
        tree = self._candidates(limit)
        self._top = []
        window = self._window_rows(limit)
        if window and size >= len(tree.tokens) + window:
            self._add_window(tree)
        return Draft(tree.tokens[:size], tree.parents[:size])

    def learn(
        self, draft: Draft | None, predictions: Sequence[int], accepted: Sequence[int]
    ) -> None:
        """See `Drafting`."""
        reach = self._parameters.ngram - 1
        drafted = 0 if draft is None else min(reach, max(draft.depths, default=0))
        right = min(len(accepted), drafted)
        if draft is not None and self._top:
            self._with_window.observe(drafted, right)
            self._iterate(predictions, 1 + len(accepted))
        else:
            self._with_window.observe(0, 0)
            if drafted:
                self._without_window.observe(drafted, right)
        self._harvest_text()

    def _candidates(self, limit: int) -> _Tree:
        tree = _Tree()
        reach = min(limit, self._parameters.ngram - 1)
        for path in self._pool.after(self._row.tokens[-1])[: self._parameters.candidates]:
            tree.add_path(path[:reach])
        return tree

    def _window_rows(self, limit: int) -> int:
        """Near the end of the answer there is nothing to look ahead to."""
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
        """One Jacobi iteration: harvest the columns, drop the oldest level, move with the text."""
        newest = [predictions[1 + index] for index in self._top]
        for column in zip(*self._levels, newest, strict=True):
            self._pool.add(column)
        self._top = []
        # A token of level l > 0 stands one further ahead than the one above it, so the levels that
        # remain have moved by one token already.
        moved = advanced - 1
        fresh = min(moved, self._parameters.window)
        self._levels = [
            [*level[moved:], *self._fresh(fresh)] for level in (*self._levels[1:], newest)
        ]

    def _harvest_text(self) -> None:
        """What the prompt and the answer say is worth a guess too."""
        tokens, n = self._row.tokens, self._parameters.ngram
        first = max(0, self._known - n + 1, len(tokens) - _SEED_TOKENS)
        for start in range(first, len(tokens) - n + 1):
            self._pool.add(tokens[start : start + n])
        self._known = len(tokens)

    def _fresh(self, count: int) -> list[int]:
        tokens = self._row.tokens
        return [tokens[self._random.randrange(len(tokens))] for _ in range(count)]


class Lookahead(Drafter[LookaheadParameters]):
    """Guesses come from a pool that the model's own iterations fill."""

    name = "lookahead"
    parameters = LookaheadParameters
    summary = "Lookahead decoding: verifies n-grams of the model's own trajectory; the same text."

    def start(self, parameters: LookaheadParameters, row: Row, context: DraftContext) -> Drafting:
        """See `Drafter`."""
        return _Lookahead(parameters, row)


LOOKAHEAD = Lookahead()
