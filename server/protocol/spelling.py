"""How single tokens are spelled in answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from ...engine.tokenization import Tokenizer
    from .generation import GenerationBody


class Spelling:
    """Bytes and text of single tokens of one model.

    `as_ids`: texts are `token_id:N` instead. `shows_special`: texts have special tokens.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, as_ids: bool = False, shows_special: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._shows_special = shows_special
        self.bytes_of = tokenizer.token_bytes

    @classmethod
    def of(cls, tokenizer: Tokenizer, body: GenerationBody) -> Self:
        """As a request wants it."""
        return cls(
            tokenizer,
            as_ids=body.return_tokens_as_token_ids,
            shows_special=not body.skip_special_tokens,
        )

    def text_of(self, token_id: int) -> str:
        """Readable text; bytes that are no UTF-8 become U+FFFD."""
        return f"token_id:{token_id}" if self._as_ids else self._tokenizer.token_text(token_id)

    def key_of(self, token_id: int) -> str:
        """Text that differs wherever the bytes do, as OpenAI's first API spells half characters."""
        if self._as_ids:
            return f"token_id:{token_id}"
        raw = self.bytes_of(token_id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is left out of texts."""
        return not self._shows_special and token_id in self._tokenizer.special_ids
