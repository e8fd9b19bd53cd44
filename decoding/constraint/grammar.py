"""What an answer has to be: grammars, and how they are compiled for a vocabulary.

The grammars are those of llguidance (docs/decoding/structured.md); decision 0047 says why.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from .constraint import Constraint

_REMEMBERED: Final = 256
"""Compiled grammars that are kept, for requests with the same one."""
_LIMITS: Final = LLParserLimits(
    # About 20 ms of building; then, for each mask, about 4 ms of lexing and 1 ms of parsing.
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    # Errors reach callers: they must not hold a dump of the parser.
    verbose_errors=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What an answer has to be, in llguidance's own notation (`text`)."""

    text: str


class GrammarError(ValueError):
    """A grammar that cannot be compiled; the message is llguidance's."""


class Grammars:
    """The grammars of one vocabulary, compiled. Thread-safe.

    `tokenizer`: the vocabulary; building one takes half a second for 50,000 tokens.
    `unnamed_ends`: tokens that end an answer and that the tokenizer does not know.
    """

    def __init__(self, tokenizer: LLTokenizer, unnamed_ends: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._unnamed_ends = tuple(unnamed_ends)
        self._compiled: OrderedDict[Grammar, Constraint] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, grammar: Grammar) -> Constraint:
        """A constraint that has read nothing yet. Compiles without the interpreter's lock.

        Raises:
            GrammarError: it is wrong, too large, or leaves no answer at all.
        """
        with self._lock:
            found = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
        if found is None:
            found = self._compile(grammar)
            with self._lock:
                self._compiled[grammar] = found
                if len(self._compiled) > _REMEMBERED:
                    self._compiled.popitem(last=False)
        return found.fork()

    def _compile(self, grammar: Grammar) -> Constraint:
        matcher = LLMatcher(self._tokenizer, grammar.text, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise GrammarError(matcher.get_error())
        constraint = Constraint(matcher, self._tokenizer.vocab_size, self._unnamed_ends)
        if not constraint.masks().any():
            raise GrammarError(constraint.failure or "no answer satisfies it")
        return constraint
