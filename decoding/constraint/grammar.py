"""What an answer has to be: grammars, and how they are compiled for a vocabulary.

The grammars are those of llguidance (docs/decoding/structured.md); decision 0047 says why.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from .constraint import Constraint, GrammarConstraint
from .thinking import Thinking

_REMEMBERED_CHARS: Final = 1 << 21
"""Length of all grammars that are kept for later requests; each character costs about 70 bytes."""
_LIMITS: Final = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    # For one mask.
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_lexer_states=50_000,
    # Compiling takes time with the square of it.
    max_grammar_size=20_000,
    # Errors reach callers: they must not hold a dump of the parser.
    verbose_errors=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """A compiled grammar. `text`: in llguidance's notation. `beginning`: before any token; None:
    it could not be compiled here."""

    text: str
    beginning: Constraint | None = field(repr=False, compare=False)

    def start(self) -> Constraint:
        """The place of a choice that has no tokens yet.

        Raises:
            GrammarError: it could not be compiled.
        """
        if self.beginning is None:
            raise GrammarError("it could not be compiled")
        return self.beginning.fork()


class GrammarError(ValueError):
    """A grammar that cannot be compiled; the message is llguidance's."""


class Grammars:
    """Compiles grammars for one vocabulary, and remembers them. Thread-safe.

    `tokenizer`: the vocabulary; building one takes half a second for 50,000 tokens. None:
    the model's cannot be used, and every grammar is refused.
    `unnamed_ends`: tokens that end an answer and that the tokenizer does not know. `controls`: ids
    by text of the tokens that are no text in grammars.
    """

    def __init__(
        self,
        tokenizer: LLTokenizer | None,
        unnamed_ends: Sequence[int] = (),
        controls: Mapping[str, int] | None = None,
    ) -> None:
        self.controls: Mapping[str, int] = controls or {}
        self._tokenizer = tokenizer
        self._unnamed_ends = frozenset(unnamed_ends)
        self._known: OrderedDict[str, Grammar] = OrderedDict()
        self._chars = 0
        self._lock = threading.Lock()

    def completed(self, thinking: Thinking) -> Thinking:
        """The same with what masks need of the vocabulary.

        Raises:
            GrammarError: the model's tokenizer cannot be used.
        """
        known = self._known_tokenizer()
        ends = {*known.eos_tokens, *self._unnamed_ends}
        return replace(thinking, vocab_size=known.vocab_size, ends=tuple(sorted(ends)))

    def _known_tokenizer(self) -> LLTokenizer:
        if self._tokenizer is None:
            raise GrammarError("no grammar can be held with this model's tokenizer; leave it out")
        return self._tokenizer

    def compile(self, text: str) -> Grammar:
        """The grammar, compiled without the interpreter's lock if it is not known yet.

        Raises:
            GrammarError: it is wrong, too large, or leaves no answer at all.
        """
        with self._lock:
            found = self._known.get(text)
            if found is not None:
                self._known.move_to_end(text)
                return found
        tokenizer = self._known_tokenizer()
        matcher = LLMatcher(tokenizer, text, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise GrammarError(matcher.get_error())
        ends = self._unnamed_ends.union(tokenizer.eos_tokens)
        beginning = GrammarConstraint(matcher, tokenizer.vocab_size, ends, self._unnamed_ends)
        # The first mask takes longest, and does its work for all that begin here.
        if not beginning.masks().any():
            raise GrammarError(beginning.failure or "no answer satisfies it")
        return self._remember(Grammar(text=text, beginning=beginning))

    def _remember(self, grammar: Grammar) -> Grammar:
        with self._lock:
            known = self._known.setdefault(grammar.text, grammar)
            if known is grammar:
                self._chars += len(grammar.text)
            while self._chars > _REMEMBERED_CHARS and len(self._known) > 1:
                oldest, _ = self._known.popitem(last=False)
                self._chars -= len(oldest)
        return known
