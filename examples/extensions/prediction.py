"""Predicted outputs as a drafter of Penstock: the caller says what the answer may look like.

For edits of a text or a program that leave most of it as it is: the old version is the prediction.
"""

from collections.abc import Sequence

from pydantic import BaseModel, Field

from penstock.decoding.drafting.base import DraftContext, Drafter, Drafting
from penstock.decoding.drafting.draft import Draft
from penstock.decoding.sampling import Row
from penstock.registry import STRICT

LONGEST_MATCH = 4


class PredictionParameters(BaseModel):
    """`tokens`: the expected answer, as /tokenize gives it. `window`: most draft tokens a pass."""

    model_config = STRICT

    tokens: list[int] = Field(min_length=1, max_length=8192)
    window: int = Field(default=16, ge=1, le=64)


class Prediction(Drafter[PredictionParameters]):
    """Drafts what the prediction has next."""

    name = "prediction"
    parameters = PredictionParameters
    summary = "Drafts from the answer that the caller expects; same text."

    def start(
        self, parameters: PredictionParameters, row: Row, context: DraftContext
    ) -> "Following":
        """See `Drafter`."""
        known = [token for token in parameters.tokens if 0 <= token < context.vocabulary.size]
        return Following(row, known, parameters.window)


class Following(Drafting):
    """Follows the prediction; after a difference, goes on where its last tokens occur nearest."""

    def __init__(self, row: Row, expected: list[int], window: int) -> None:
        self._row = row
        self._expected = expected
        self._window = window
        self._place = 0
        self._read = row.answer_start

    @property
    def fixed(self) -> bool:
        """The caller chose how many draft tokens there are."""
        return True

    def sizes(self, limit: int, worth: float) -> list[tuple[int, float]]:
        """All that are left of the window; how many are right, nobody knows."""
        self._follow(self._row.tokens)
        size = min(self._window, limit, len(self._expected) - self._place)
        return [(size, size / 2)] if size > 0 else []

    def propose(self, size: int, limit: int) -> Draft:
        """See `Drafting`."""
        return Draft(self._expected[self._place : self._place + size])

    def _follow(self, tokens: Sequence[int]) -> None:
        new = list(tokens[self._read :])
        self._read = len(tokens)
        if self._expected[self._place : self._place + len(new)] == new:
            self._place += len(new)
            return
        for length in range(LONGEST_MATCH, 0, -1):
            last = list(tokens[max(self._row.answer_start, len(tokens) - length) :])
            ends = range(len(last), len(self._expected) + 1)
            found = [end for end in ends if self._expected[end - len(last) : end] == last]
            if found:
                self._place = min(found, key=lambda end: abs(end - self._place))
                return


PREDICTION = Prediction()
