"""How single tokens are spelled in answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...engine.requests.tokenizer import Tokenizer
    from .generation import GenerationBody

_BY_ID = "token_id:"  # vLLM's form


class Spelling:
    """Bytes and text of single tokens of one model.

    `as_ids`: texts are `token_id:N` instead.
    """

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    @classmethod
    def of(cls, tokenizer: Tokenizer, body: GenerationBody) -> Self:
        """As a request wants it."""
        return cls(tokenizer, as_ids=body.return_tokens_as_token_ids)

    def text_of(self, token_id: int) -> str:
        """Readable text; bytes that are no UTF-8 become U+FFFD."""
        return f"{_BY_ID}{token_id}" if self._as_ids else self._tokenizer.token_text(token_id)

    def bytes_of(self, token_id: int) -> list[int] | None:
        """The token's bytes; None for an id without a token, as in a padded vocabulary."""
        if not self._tokenizer.token_piece(token_id):
            return None
        return list(self._tokenizer.token_bytes(token_id))

    def keys_of(self, token_ids: Iterable[int]) -> dict[int, str]:
        """Each token's text, or what stands for it, no two of them alike.

        Where two tokens have one text (a byte and the letter that it is), the first keeps it, and
        the other is named by its id, as is an id without a token.
        """
        keys: dict[int, str] = {}
        used: set[str] = set()
        for token_id in token_ids:
            key = self._key_of(token_id)
            if key in used or key.startswith(_BY_ID):
                key = f"{_BY_ID}{token_id}"
            used.add(key)
            keys[token_id] = key
        return keys

    def _key_of(self, token_id: int) -> str:
        """Half characters are spelled as by OpenAI's first API."""
        if self._as_ids or not self._tokenizer.token_piece(token_id):
            return _BY_ID
        raw = self._tokenizer.token_bytes(token_id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
