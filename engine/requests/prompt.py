"""The kinds of prompt, and a prompt as a target sees it to derive further prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ...errors import RequestError
from .chat.template import RenderedChat

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


Prompt = str | list[int] | RenderedChat
"""A text, token ids, or a chat, whose template writes the special tokens."""


class Encode(Protocol):
    """Encodes a text or a chat as tokens, or refuses it with an error that names `param`."""

    def __call__(
        self,
        prompt: Prompt,
        *,
        param: str,
        add_special_tokens: bool | None = None,
        behind: bool = False,
    ) -> tuple[int, ...]:
        """Token ids of `prompt`; see `InputProcessor.encode`."""
        ...


@dataclass(frozen=True, slots=True)
class TargetPrompt:
    """A request's prompt as targets see it."""

    ids: tuple[int, ...]
    _tokenizer: Tokenizer
    _encode: Encode

    @property
    def text(self) -> str:
        """Its text, special tokens included."""
        return self._tokenizer.decode(self.ids, skip_special_tokens=False)

    def encode(self, text: str, *, param: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Tokens of a further prompt, by default with the special tokens that begin prompts."""
        return self._encode(text, param=param, add_special_tokens=add_special_tokens)

    def render(self, messages: Sequence[Mapping[str, str]], *, param: str) -> tuple[int, ...]:
        """Tokens of a chat, ready for the assistant's answer."""
        try:
            chat = self._tokenizer.render_chat(messages)
        except RequestError as error:
            raise RequestError(f"{param}: {error}", param=param, code=error.code) from error
        return self._encode(chat, param=param)
