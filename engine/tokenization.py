"""The tokenizer as the rest of the house sees it: a thin face on a transformers tokenizer."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from ..decoding.pieces import Pieces
from ..errors import RequestError
from .chat.environment import default_template, template_variables


class Tokenizer:
    """Encodes, decodes and renders chats. Safe to use from several threads.

    Reads nothing but what it was given: chat templates are rendered by transformers in a
    sandboxed, immutable Jinja environment.
    """

    def __init__(self, hf: PreTrainedTokenizerBase, eos_ids: Iterable[int] = ()) -> None:
        self.hf = hf
        self.eos_ids = frozenset(eos_ids)
        self._bytes: dict[int, bytes] = {}
        self._pieces: Pieces | None = None
        self.backend: Any = getattr(hf, "backend_tokenizer", None)
        marked = (i for i, token in hf.added_tokens_decoder.items() if token.special)
        self.special_ids = frozenset(int(i) for i in (*hf.all_special_ids, *marked))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`."""
        if self.backend is not None:
            # Straight to the Rust tokenizer: no shared truncation state, hence thread-safe.
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return self.hf.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        if self.backend is not None:
            return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return str(self.hf.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text of a chat; encode it without adding special tokens.

        Raises:
            RequestError: the model has no template, or the template refuses these messages.
        """
        if self.hf.chat_template is None:
            raise RequestError(
                "this model has no chat template; use /v1/completions",
                param="messages",
                code="no_chat_template",
            )
        try:
            return str(
                self.hf.apply_chat_template(
                    [dict(message) for message in messages],
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    **(template_kwargs or {}),
                )
            )
        except (jinja2.TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
            # Untrusted template code failed on untrusted messages; only what it said about
            # the messages (raise_exception in the template) may go back to the caller.
            said = str(error)[:200] if isinstance(error, jinja2.TemplateError) else ""
            raise RequestError(
                "the model's chat template cannot render these messages"
                + (f": {said}" if said else ""),
                param="messages",
                code="chat_template_error",
            ) from error

    @cached_property
    def template_variables(self) -> frozenset[str]:
        """Names that the chat template reads from its caller, as `enable_thinking`."""
        source = default_template(self.hf.chat_template)
        return frozenset() if source is None else template_variables(source)

    @cached_property
    def longest_token_chars(self) -> int:
        """No token stands for more characters than this."""
        longest = max((len(piece) for piece in self.hf.get_vocab()), default=1)
        return max(longest, 4)

    def token_piece(self, token_id: int) -> str:
        """The vocabulary's own spelling of a token; empty for ids without one."""
        piece = self.hf.convert_ids_to_tokens(token_id)
        return piece if isinstance(piece, str) else ""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, also where they are no whole UTF-8 character."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return added.encode()
        piece = self.token_piece(token_id)
        if self.is_byte_level and all(character in _BYTE_OF for character in piece):
            return bytes(_BYTE_OF[character] for character in piece)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        if piece.startswith("▁"):
            return piece.replace("▁", " ").encode()
        return self.decode([token_id], skip_special_tokens=False).encode()

    def pieces(self, size: int) -> Pieces:
        """What each of the first `size` tokens adds to a text; special ones add nothing.

        Takes a second for hundreds of thousands of tokens, and nothing when asked again.
        """
        if self._pieces is None or len(self._pieces.of) != size:
            names = self.hf.convert_ids_to_tokens(list(range(size)))
            added = [
                b"" if i in self.special_ids else self._adds(i, n) for i, n in enumerate(names)
            ]
            special = {i: self.token_bytes(i) for i in self.special_ids if i < size}
            self._pieces = Pieces(added, special)
        return self._pieces

    def _adds(self, token_id: int, name: str | None) -> bytes:
        """The bytes of a token behind others; `name`: how the vocabulary spells it, if it does."""
        if name is None:
            return b""
        if self.is_byte_level or name.startswith(("▁", "<0x")):
            return self.token_bytes(token_id)
        # Others may depend on what is before them: a space, or none.
        before = self.decode([self._a_word], skip_special_tokens=False)
        both = self.decode([self._a_word, token_id], skip_special_tokens=False)
        return both.removeprefix(before).encode()

    @cached_property
    def _a_word(self) -> int:
        """Some token of letters."""
        names = self.hf.get_vocab()
        letters = (i for name, i in names.items() if name.isascii() and name.isalpha())
        return int(min(letters, default=0))

    def token_text(self, token_id: int) -> str:
        """Readable text of one token; bytes that are no UTF-8 become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether the text is exactly the concatenation of the tokens' bytes (byte-level BPE)."""
        return self.backend is not None and repr(self.backend.decoder).startswith("ByteLevel")

    def added_text(self, token_id: int) -> str | None:
        """The spelling of a token beside the trained vocabulary; None: it is within."""
        return self._added.get(token_id)

    @cached_property
    def _added(self) -> dict[int, str]:
        """Tokens added beside the trained vocabulary, which are spelled as they are."""
        return {int(i): token.content for i, token in self.hf.added_tokens_decoder.items()}


def _byte_stand_ins() -> dict[str, int]:
    """Printable stand-ins of the 256 bytes in byte-level BPE (Radford et al. 2019, GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_stand_ins()
