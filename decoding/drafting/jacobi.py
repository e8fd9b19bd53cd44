"""Jacobi parallel decoding (Santilli et al. 2023, arXiv:2305.10427): `jacobi`.

Draft the next W tokens, let one pass predict all of them, keep those that are right, and draft the
predictions next. The fixed point is the sequential text. Schemes: `sliding` moves the window past
the accepted tokens and refills its end; the paper's own are `block` (PGJ: a block of W + 1 tokens
is finished before the next begins) and `hybrid` (HGJ: blocks first, then one token at a time).
"""

from collections.abc import Sequence
from random import Random
from typing import Literal

from pydantic import BaseModel, Field

from ...registry import STRICT
from ..sampling import Row
from .acceptance import acceptance_of
from .base import DraftContext, Drafter, Drafting
from .chain import MAX_WINDOW, ChainDrafting
from .draft import Draft
from .ngram import MAX_NGRAM, SuggestedDrafting, memory_of

Initialiser = Literal["pad", "repeat-last", "random", "prompt-sample", "ngram"]


class JacobiParameters(BaseModel):
    """`window`: most draft tokens of a pass. `init`: source of draft tokens that no pass has
    predicted; with `ngram` they also replace predicted ones that are less likely.
    `shared`: with `ngram`, draft from earlier answers too, and let later requests draft from this.
    `adaptive`: draft as many as are expected to pay, down to none; otherwise always `window`.
    `parallel_tokens`: with scheme `hybrid`, tokens of the answer that are decoded in blocks."""

    model_config = STRICT

    window: int = Field(default=16, ge=0, le=MAX_WINDOW)
    init: Initialiser = "ngram"
    scheme: Literal["sliding", "block", "hybrid"] = "sliding"
    shared: bool = True
    parallel_tokens: int = Field(default=128, ge=0, le=2**31 - 1)
    adaptive: bool = True


class _Window:
    """How many tokens ahead a pass drafts, by the scheme."""

    def __init__(self, parameters: JacobiParameters, row: Row) -> None:
        self._parameters = parameters
        self._row = row
        self._known = len(row.tokens)
        self._block_left = parameters.window + 1

    @property
    def has_moved(self) -> bool:
        """Whether the text has grown since the window last moved."""
        return len(self._row.tokens) != self._known

    def size(self, limit: int) -> int:
        """Number of draft tokens of the next pass, `limit` at most."""
        most = min(self._parameters.window, limit)
        if self._parameters.scheme == "sliding":
            return most
        generated = len(self._row.tokens) - self._row.prompt_length
        if self._parameters.scheme == "hybrid" and generated >= self._parameters.parallel_tokens:
            return 0
        return min(most, self._block_left - 1)

    def carry(self, predicted: list[int]) -> list[int]:
        """Move with the text; returns `predicted` if the next pass drafts it, else nothing."""
        self._block_left -= len(self._row.tokens) - self._known
        self._known = len(self._row.tokens)
        if self._block_left > 0:
            return predicted
        self._block_left = self._parameters.window + 1
        return predicted if self._parameters.scheme == "sliding" else []


def _behind(draft: Draft, predictions: Sequence[int], accepted: Sequence[int]) -> list[int]:
    """Predictions for the places after the accepted text, by the first draft token of each depth.

    The draft tokens before those places were wrong, or they would have been accepted.
    """
    found: dict[int, int] = {}
    for index, depth in enumerate(draft.depths):
        if depth > len(accepted):
            found.setdefault(depth, predictions[1 + index])
    return [found[depth] for depth in sorted(found)]


class _Filled(ChainDrafting):
    """Drafts the last pass's predictions, and fills the rest of the window by `init`."""

    def __init__(self, parameters: JacobiParameters, row: Row, context: DraftContext) -> None:
        name = f"jacobi from {parameters.init}"
        super().__init__(row, acceptance_of(context, name), adaptive=parameters.adaptive)
        self._initialiser = parameters.init
        self._vocabulary = context.vocabulary
        self._random = Random(row.sampling.seed)
        self._window = _Window(parameters, row)
        self._carried: list[int] = []

    def available(self, limit: int) -> int:
        return self._window.size(limit)

    def draft_tokens(self, count: int) -> list[int]:
        carried = self._carried[:count]
        last = carried[-1] if carried else self.row.tokens[-1]
        return carried + [self._initial(last) for _ in range(count - len(carried))]

    def moved(self, predictions: Sequence[int]) -> None:
        self._carried = self._window.carry(list(predictions))

    def _initial(self, last: int) -> int:
        match self._initialiser:
            case "pad":
                return self._vocabulary.pad_id
            case "random":
                return self._random.randrange(self._vocabulary.size)
            case "prompt-sample":
                return self.row.tokens[self._random.randrange(self.row.prompt_length)]
            case _:
                return last


class _Suggested(SuggestedDrafting):
    """Drafts, at each place, the likelier of the last pass's prediction and the n-grams' tokens."""

    def __init__(self, parameters: JacobiParameters, row: Row, context: DraftContext) -> None:
        super().__init__(
            memory_of(context),
            row,
            longest=MAX_NGRAM,
            shortest=1,
            shared=parameters.shared,
            window=parameters.window,
            adaptive=parameters.adaptive,
            trees=context.trees and not context.lines,
        )
        self._limits = _Window(parameters, row)
        self._carried: list[int] = []

    def suggest(self, limit: int, worth: float) -> int:
        if self._limits.has_moved:  # by tokens that were not drafted
            self._carried = self._limits.carry([])
        most = self._limits.size(limit)
        return self.suggester.suggest(most, most, self._carried, worth)

    def learn(self, draft: Draft, predictions: Sequence[int], accepted: Sequence[int]) -> None:
        self._carried = self._limits.carry(_behind(draft, predictions, accepted))


class Jacobi(Drafter[JacobiParameters]):
    """The window's draft tokens are the last pass's predictions."""

    name = "jacobi"
    parameters = JacobiParameters
    summary = "Jacobi parallel decoding: several tokens a pass, the same text."

    def start(self, parameters: JacobiParameters, row: Row, context: DraftContext) -> Drafting:
        """See `Drafter`."""
        if parameters.init == "ngram":
            return _Suggested(parameters, row, context)
        return _Filled(parameters, row, context)


JACOBI = Jacobi()
