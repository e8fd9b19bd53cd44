"""Prompt lookup (Saxena 2023, apoorvumang/prompt-lookup-decoding): `ngram`.

Where the last tokens stood before, in the prompt or in the answer, what followed them then is
guessed to follow again. It pays where answers repeat their prompt: extraction, editing, code.
"""

from collections.abc import Sequence

from pydantic import BaseModel, Field, model_validator

from ..base import STRICT, Drafter, Vocabulary
from ..sampling import Row
from .chain import MAX_WINDOW, ChainDrafting
from .history import History

MAX_NGRAM = 16


class NgramParameters(BaseModel):
    """`window`: guesses of a pass at most. `max_ngram`, `min_ngram`: how many last tokens must
    have occurred before; more are tried first.

    `adaptive`: draft as many as have lately paid, down to none; otherwise all that were found.
    """

    model_config = STRICT

    window: int = Field(default=16, ge=0, le=MAX_WINDOW)
    max_ngram: int = Field(default=4, ge=1, le=MAX_NGRAM)
    min_ngram: int = Field(default=2, ge=1, le=MAX_NGRAM)
    adaptive: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> "NgramParameters":
        if self.min_ngram > self.max_ngram:
            raise ValueError(
                f"min_ngram is {self.min_ngram}, above max_ngram ({self.max_ngram}); swap them"
            )
        return self


class _Ngram(ChainDrafting):
    def __init__(self, parameters: NgramParameters, row: Row) -> None:
        super().__init__(adaptive=parameters.adaptive)
        self._parameters = parameters
        self._row = row
        self._history = History(row.tokens)
        self._found: list[int] | None = None

    def available(self, limit: int) -> int:
        if self._found is None:
            p = self._parameters
            self._found = self._history.follow(
                (), p.window, longest=p.max_ngram, shortest=p.min_ngram
            )
        return min(len(self._found), limit)

    def guesses(self, count: int) -> list[int]:
        return (self._found or [])[:count]

    def learned(self, predictions: Sequence[int], right: int) -> None:
        self._history.extend(self._row.tokens[len(self._history) :])
        self._found = None


class Ngram(Drafter[NgramParameters]):
    """Guesses come from the sequence's own past."""

    name = "ngram"
    parameters = NgramParameters
    summary = "Prompt lookup: guesses what followed the last tokens before; the same text."

    def start(self, parameters: NgramParameters, row: Row, vocabulary: Vocabulary) -> ChainDrafting:
        """See `Drafter`."""
        return _Ngram(parameters, row)


NGRAM = Ngram()
