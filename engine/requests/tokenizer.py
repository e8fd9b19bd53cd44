"""A thin wrapper around a transformers tokenizer, which the rest of the engine uses."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...decoding.pieces import Pieces
from ...errors import RequestError
from .chat.encoding import ChatEncoder
from .chat.template import ChatTemplate, RenderedChat


class Tokenizer:
    """Encodes, decodes and renders chats. Safe to use from several threads.

    `anyone_writes_control_tokens`: text of a caller in a chat may become control tokens, too.
    """

    def __init__(
        self,
        hf: PreTrainedTokenizerBase,
        eos_ids: Iterable[int] = (),
        *,
        anyone_writes_control_tokens: bool = False,
    ) -> None:
        self.hf = hf
        self.eos_ids = frozenset(eos_ids)
        self._bytes: dict[int, bytes] = {}
        self._anyone_writes = anyone_writes_control_tokens
        self._pieces: Pieces | None = None
        self.backend: Any = getattr(hf, "backend_tokenizer", None)
        if self.backend is not None:
            self.backend.no_truncation()
            self.backend.no_padding()
        marked = (i for i, token in hf.added_tokens_decoder.items() if token.special)
        self.special_ids = frozenset(int(i) for i in (*hf.all_special_ids, *marked))

    def prepare(self) -> None:
        """Warm up for the first chat: try the template, copy the tokenizer."""
        if self.chat_template is not None:
            _ = self.chat_template.wants
            _ = self._chat_encoder

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, in which added tokens are parsed.

        Raises:
            RequestError: the tokenizer fails on it.
        """
        if self.backend is None:
            return self.hf.encode(text, add_special_tokens=add_special_tokens)
        return _encoded(self.backend, [text], add_special_tokens)[0].ids

    def encode_chat(self, chat: RenderedChat, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a chat, in which only the template's control tokens are parsed.

        Raises:
            RequestError: the tokenizer fails on it.
        """
        if self._anyone_writes:
            return self.encode(chat.text, add_special_tokens=add_special_tokens)
        return self._chat_encoder.encode(chat, add_special_tokens=add_special_tokens)

    def encode_with_places(
        self, text: str, *, add_special_tokens: bool = True
    ) -> tuple[list[int], list[int]]:
        """Token ids of `text`, and for each the character of `text` at which it begins.

        A token that begins inside a character has the place of that character. A token that is not
        in the text (one that begins every prompt, a first space) has the place of the next one.
        """
        if self.backend is None:
            raise NotImplementedError("this tokenizer does not tell where its tokens are")
        encoding = self.backend.encode(text, add_special_tokens=add_special_tokens)
        places: list[int] = []
        covered = 0
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            spelled = self.token_text(token)
            at = start
            if not text.startswith(spelled, start):
                # Some tokenizers include spaces around a token, or leave out a token's own.
                found = text.find(spelled, covered, end)
                at = start if found < 0 else found
            places.append(at)
            covered = max(covered, end)
        return encoding.ids, places

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Raises:
            RequestError: the tokenizer fails on them.
        """
        if self.backend is None:
            return str(self.hf.decode(list(ids), skip_special_tokens=skip_special_tokens))
        with panics_are_errors():
            # `decode` would hold the interpreter lock throughout.
            batch = self.backend.decode_batch([list(ids)], skip_special_tokens=skip_special_tokens)
        return batch[0]

    def close(self) -> None:
        """End the processes that render chats."""
        if self.chat_template is not None:
            self.chat_template.close()

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> RenderedChat:
        """The prompt of a chat, for `encode_chat`. `tools`: see `ChatTemplate.render`.

        Raises:
            RequestError: the model has no template, or the template refuses these messages.
        """
        if self.chat_template is None:
            raise RequestError(
                "this model has no chat template; use /v1/completions",
                param="messages",
                code="no_chat_template",
            )
        return self.chat_template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=template_kwargs,
            tools=tools,
        )

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The model's chat template; None: it has none."""
        if not self.hf.chat_template:
            return None
        special: dict[str, Any] = self.hf.special_tokens_map
        constants = {name: text for name, text in special.items() if isinstance(text, str)}
        return ChatTemplate(self.hf.chat_template, constants)

    @property
    def template_variables(self) -> frozenset[str]:
        """Variables that the chat template reads from its caller, such as `enable_thinking`."""
        return frozenset() if self.chat_template is None else self.chat_template.variables

    @cached_property
    def _chat_encoder(self) -> ChatEncoder:
        unknown: Any = self.hf.unk_token_id
        return ChatEncoder(self.backend, self._added, unknown, _encoded)

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """The special tokens that begin every text."""
        (alone,) = self.encode("a", add_special_tokens=False)[:1]
        ids = self.encode("a")
        return tuple(ids[: ids.index(alone)])

    @cached_property
    def longest_token_chars(self) -> int:
        """An upper bound on the characters of one token."""
        longest = max((len(piece) for piece in self.hf.get_vocab()), default=1)
        return max(longest, 4)

    def token_piece(self, token_id: int) -> str:
        """The vocabulary's own spelling of a token; empty for ids without one.

        A model may have more rows in its embedding than its tokenizer has tokens.
        """
        try:
            piece = self.hf.convert_ids_to_tokens(token_id)
        except IndexError:  # raised by tokenizers that are not in Rust
            return ""
        return piece if isinstance(piece, str) else ""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, even if they are not whole UTF-8 characters."""
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

        Takes a second for hundreds of thousands of tokens; cached after that.
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
        """The bytes that a token adds after others; `name`: its spelling in the vocabulary."""
        if name is None:
            return b""
        if self.is_byte_level or name.startswith(("▁", "<0x")):
            return self.token_bytes(token_id)
        # Others may depend on the token before: with a space, or without.
        before = self.decode([self._a_word], skip_special_tokens=False)
        both = self.decode([self._a_word, token_id], skip_special_tokens=False)
        return both.removeprefix(before).encode()

    @cached_property
    def _a_word(self) -> int:
        """The first token that is only ASCII letters; 0 without one."""
        names = self.hf.get_vocab()
        letters = (i for name, i in names.items() if name.isascii() and name.isalpha())
        return int(min(letters, default=0))

    def token_text(self, token_id: int) -> str:
        """Readable text of one token; bytes that are not UTF-8 become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether the text is exactly the concatenation of the tokens' bytes (byte-level BPE)."""
        return self.backend is not None and repr(self.backend.decoder).startswith("ByteLevel")

    def added_id(self, text: str) -> int | None:
        """The token added to the trained vocabulary that is this text; None: there is none."""
        return next((token for token, added in self._added.items() if added == text), None)

    def added_text(self, token_id: int) -> str | None:
        """The text of a token added to the trained vocabulary; None: it is not an added one."""
        return self._added.get(token_id)

    @cached_property
    def _added(self) -> dict[int, str]:
        """Texts of the tokens added to the trained vocabulary, by id."""
        return {int(i): token.content for i, token in self.hf.added_tokens_decoder.items()}


def _encoded(backend: Any, texts: list[str], add_special_tokens: bool) -> list[Any]:
    """Encodings of the texts, in a batch: `encode` would hold the interpreter lock throughout."""
    with panics_are_errors():
        return backend.encode_batch(texts, add_special_tokens=add_special_tokens)


@contextmanager
def panics_are_errors() -> Generator[None]:
    """Turn panics of the Rust tokenizer, which are not `Exception`s, into RequestError."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise RequestError(
            "the model's tokenizer fails on this input; send another one",
            code="tokenizer_error",
        ) from error


def _byte_stand_ins() -> dict[str, int]:
    """Printable stand-ins for the 256 bytes in byte-level BPE (Radford et al. 2019, GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_stand_ins()
