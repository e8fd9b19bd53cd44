"""Jacobi parallel decoding (Santilli et al. 2023, arXiv:2305.10427): `jacobi`.

Guess the next W tokens, let one pass predict all of them, keep what is right, and guess again with
the predictions. The fixed point is the sequential text. Schemes: `sliding` moves the window past
all that is right and fills it up behind; the paper's own are `block` (PGJ: a block of W + 1 tokens
is finished before the next begins) and `hybrid` (HGJ: blocks first, then one token at a time).
"""

from collections.abc import Sequence
from random import Random
from typing import Literal

from pydantic import BaseModel, Field

from ..base import STRICT, Drafter, Vocabulary
from ..sampling import Row
from .chain import MAX_WINDOW, ChainDrafting
from .history import History

Initialiser = Literal["pad", "repeat-last", "random", "prompt-sample", "ngram"]
_LONGEST_NGRAM, _SHORTEST_NGRAM = 4, 1


class JacobiParameters(BaseModel):
    """`window`: guesses of a pass at most. `init`: where guesses come from that no pass has made.

    `adaptive`: draft as many as have lately paid, down to none; otherwise always `window`.
    `parallel_tokens`: of the answer, in blocks, with scheme `hybrid`.
    """

    model_config = STRICT

    window: int = Field(default=16, ge=0, le=MAX_WINDOW)
    init: Initialiser = "ngram"
    scheme: Literal["sliding", "block", "hybrid"] = "sliding"
    parallel_tokens: int = Field(default=128, ge=0, le=2**31 - 1)
    adaptive: bool = True


class _Jacobi(ChainDrafting):
    def __init__(self, parameters: JacobiParameters, row: Row, vocabulary: Vocabulary) -> None:
        super().__init__(adaptive=parameters.adaptive)
        self._parameters = parameters
        self._row = row
        self._vocabulary = vocabulary
        self._random = Random(row.sampling.seed)
        self._history = History(row.tokens)
        self._carried: list[int] = []
        self._block_left = parameters.window + 1

    def available(self, limit: int) -> int:
        most = min(self._parameters.window, limit)
        if self._parameters.scheme == "sliding":
            return most
        generated = len(self._row.tokens) - self._row.prompt_length
        if self._parameters.scheme == "hybrid" and generated >= self._parameters.parallel_tokens:
            return 0
        return min(most, self._block_left - 1)

    def guesses(self, count: int) -> list[int]:
        carried = self._carried[:count]
        return carried + self._initial(carried, count - len(carried))

    def learned(self, predictions: Sequence[int], right: int) -> None:
        new = self._row.tokens[len(self._history) :]
        self._history.extend(new)
        self._carried = list(predictions[right + 1 :])
        self._block_left -= len(new)
        if self._block_left <= 0:
            self._block_left = self._parameters.window + 1
            if self._parameters.scheme != "sliding":
                self._carried = []

    def _initial(self, carried: list[int], count: int) -> list[int]:
        if count <= 0:
            return []
        last = carried[-1] if carried else self._row.tokens[-1]
        match self._parameters.init:
            case "pad":
                return [self._vocabulary.pad_id] * count
            case "repeat-last":
                return [last] * count
            case "random":
                return [self._random.randrange(self._vocabulary.size) for _ in range(count)]
            case "prompt-sample":
                prompt_length = self._row.prompt_length
                return [
                    self._row.tokens[self._random.randrange(prompt_length)] for _ in range(count)
                ]
            case "ngram":
                found = self._history.follow(
                    carried, count, longest=_LONGEST_NGRAM, shortest=_SHORTEST_NGRAM
                )
                return found + [last] * (count - len(found))


class Jacobi(Drafter[JacobiParameters]):
    """The window's guesses are the last pass's predictions."""

    name = "jacobi"
    parameters = JacobiParameters
    summary = "Jacobi parallel decoding: several tokens a pass, the same text."

    def start(
        self, parameters: JacobiParameters, row: Row, vocabulary: Vocabulary
    ) -> ChainDrafting:
        """See `Drafter`."""
        return _Jacobi(parameters, row, vocabulary)


JACOBI = Jacobi()
