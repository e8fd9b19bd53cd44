"""A model's vocabulary as llguidance wants it."""

import logging
from collections.abc import Sequence
from typing import Any

from llguidance import LLTokenizer

from ...decoding.constraint.grammar import Grammars
from .tokenizer import Tokenizer, panics_are_errors

logger = logging.getLogger(__name__)


class _Words:
    """A tokenizer that is not in Rust; `LLTokenizer` reads these attributes."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        self.bos_token_id: int | None = None
        self.tokens: Sequence[bytes] = tokenizer.pieces(vocab_size).of
        self.special_token_ids = sorted(i for i in tokenizer.special_ids if i < vocab_size)

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def grammars_of(tokenizer: Tokenizer, vocab_size: int) -> Grammars:
    """The grammars for a model's vocabulary. Holds the interpreter's lock: about half a second for
    50,000 tokens. So it is made while the model is loaded.

    A model whose tokenizer llguidance cannot take is served without grammars.
    """
    try:
        with panics_are_errors():
            return _grammars(tokenizer, vocab_size)
    except Exception as error:
        logger.warning(
            "structured output is not available: %s",
            error,
            exc_info=logger.isEnabledFor(logging.DEBUG),
        )
        return Grammars(None)


def _grammars(tokenizer: Tokenizer, vocab_size: int) -> Grammars:
    backend: Any = tokenizer.backend
    size = vocab_size if backend is None else backend.get_vocab_size(with_added_tokens=True)
    ends = sorted(tokenizer.eos_ids)
    named = [token for token in ends if token < size]
    words: Any = backend.to_str() if backend is not None else None
    if backend is None:
        words = _Words(tokenizer, vocab_size, named[0] if named else 0)
    known = LLTokenizer(words, eos_token=named or None)
    controls = {
        tokenizer.token_text(token): token
        for token in range(size)
        if token < vocab_size and known.is_special_token(token)
    }
    return Grammars(known, [token for token in ends if size <= token < vocab_size], controls)
