"""Prompt lookup (Saxena 2023, apoorvumang/prompt-lookup-decoding), with a memory: `ngram`.

Where the last tokens occurred before, in the prompt or in the answer, it drafts what followed them
there; it also drafts what most often followed them in earlier answers. It pays where answers repeat
their prompt or one another: extraction, editing, code, forms.
"""

from functools import cached_property
from typing import Final

from pydantic import BaseModel, Field, model_validator

from ...registry import STRICT
from ..sampling import Row
from . import compiled, suggest
from .base import DraftContext, Drafter, Drafting
from .chain import MAX_WINDOW, SIZES
from .draft import Draft
from .suggest import LEAST_CHANCE

MAX_NGRAM: Final = 8
_MEMORY: Final = "suggestions"


class NgramParameters(BaseModel):
    """`window`: most draft tokens of a pass. `max_ngram`, `min_ngram`: how many last tokens must
    have occurred before; more are tried first.

    `shared`: draft from earlier answers too, and let later requests draft from this one; only among
    requests that may share cached prefixes.
    `adaptive`: draft as many as are expected to pay, down to none; otherwise all that were found.
    """

    model_config = STRICT

    window: int = Field(default=16, ge=0, le=MAX_WINDOW)
    max_ngram: int = Field(default=8, ge=1, le=MAX_NGRAM)
    min_ngram: int = Field(default=1, ge=1, le=MAX_NGRAM)
    shared: bool = True
    adaptive: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> "NgramParameters":
        if self.min_ngram > self.max_ngram:
            raise ValueError(
                f"min_ngram is {self.min_ngram}, above max_ngram ({self.max_ngram}); swap them"
            )
        return self


class SuggestedDrafting(Drafting):
    """Drafts a suggester's tokens: as many as are expected to pay if `adaptive`, else all."""

    def __init__(
        self,
        memory: "suggest.Memory | compiled.Memory",
        row: Row,
        *,
        longest: int,
        shortest: int,
        shared: bool,
        window: int,
        adaptive: bool,
        trees: bool,
    ) -> None:
        self.row = row
        self._trees = trees
        self.window = window
        self._memory = memory
        self._matches = longest, shortest
        self._shared = shared
        self._adaptive = adaptive

    @cached_property
    def suggester(self) -> "suggest.Suggester | compiled.Suggester":
        """Made on first use: where drafts do not pay, many sequences never use theirs."""
        longest, shortest = self._matches
        return self._memory.suggester(
            self.row.tokens[: self.row.prompt_length],
            longest=longest,
            shortest=shortest,
            shared=self._shared,
            trees=self._trees,
        )

    @property
    def fixed(self) -> bool:
        """See `Drafting`."""
        return not self._adaptive

    def suggest(self, limit: int, worth: float) -> int:
        """Make the draft tokens for the next pass; returns how many."""
        return self.suggester.suggest(min(self.window, limit), limit, worth=worth)

    def sizes(self, limit: int, worth: float) -> list[tuple[int, float]]:
        """See `Drafting`."""
        self.suggester.learn(self.row.tokens)
        most = self.suggest(limit, worth if self._adaptive else LEAST_CHANCE)
        if most <= 0:
            return []
        expected = self.suggester.expected()
        wanted = [most] if self.fixed else [*(size for size in SIZES if size < most), most]
        return [(size, expected[size - 1]) for size in wanted]

    def propose(self, size: int, limit: int) -> Draft:
        """See `Drafting`."""
        return self.suggester.draft(size)

    def finish(self) -> None:
        """See `Drafting`."""
        self.suggester.finish(self.row.tokens)


class Ngram(Drafter[NgramParameters]):
    """Drafts from n-grams of the sequence itself and of earlier answers."""

    name = "ngram"
    parameters = NgramParameters
    summary = "Drafts what followed the last tokens before, here or in earlier answers; same text."

    def start(self, parameters: NgramParameters, row: Row, context: DraftContext) -> Drafting:
        """See `Drafter`."""
        return SuggestedDrafting(
            memory_of(context),
            row,
            longest=parameters.max_ngram,
            shortest=parameters.min_ngram,
            shared=parameters.shared,
            window=parameters.window,
            adaptive=parameters.adaptive,
            trees=context.trees and not context.lines,
        )


def memory_of(context: DraftContext) -> "suggest.Memory | compiled.Memory":
    """The suggesters' memory of earlier requests, made on first use."""
    if _MEMORY not in context.memory:
        context.memory[_MEMORY] = compiled.new_memory()
    return context.memory[_MEMORY]


NGRAM = Ngram()
