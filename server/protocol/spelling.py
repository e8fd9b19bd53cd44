"""How single tokens are spelled in answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...engine.tokenization import Tokenizer


class Spelling:
    """Bytes and text of single tokens of one model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.bytes_of = tokenizer.token_bytes
        self.text_of = tokenizer.token_text

    def key_of(self, token_id: int) -> str:
        """Text that differs wherever the bytes do, as OpenAI's first API spells half characters."""
        raw = self.bytes_of(token_id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is left out of texts."""
        return token_id in self._tokenizer.special_ids
