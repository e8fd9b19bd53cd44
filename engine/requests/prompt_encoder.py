"""Turns prompts into token ids, or refuses them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import ContextLengthError, RequestError
from .chat.template import RenderedChat
from .tokenizer import Tokenizer
from .traits import ModelTraits

Prompt = str | list[int] | RenderedChat
"""A text, token ids, or a chat, whose template writes the special tokens."""

_ANCHOR = "\N{WHITE SMILING FACE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEncoder:
    """Encodes prompts of at most `max_length_tokens` for one model."""

    model: ModelTraits
    max_length_tokens: int

    @property
    def max_chars(self) -> int:
        """Characters of a text beyond which no tokenisation fits."""
        return self.max_length_tokens * self.model.tokenizer.longest_token_chars

    def encode(
        self,
        prompt: Prompt,
        *,
        param: str,
        add_special_tokens: bool | None = None,
        behind: bool = False,
    ) -> tuple[int, ...]:
        """Token ids of a prompt; a text too long to fit is refused before it is tokenised.

        `param`: what errors name. `add_special_tokens`: those that begin a prompt; None: for texts
        but not for chats, whose template writes them. `behind`: the text follows another one.

        Raises:
            RequestError: the prompt is empty, too long, or has ids outside the vocabulary.
        """
        if isinstance(prompt, str | RenderedChat):
            text = prompt if isinstance(prompt, str) else prompt.text
            if len(text) > self.max_chars:
                raise ContextLengthError(
                    f"{param} has {len(text)} characters, which cannot fit however they are "
                    "tokenised; shorten it",
                    limit_tokens=self.max_length_tokens,
                    param=param,
                )
            try:
                ids = self._tokens(prompt, add_special_tokens, behind=behind)
            except RequestError as error:
                raise RequestError(error.message, param=param, code=error.code) from error
        else:
            ids = prompt
        # A tokenizer may know more tokens than the model has embeddings for.
        self.model.check_vocabulary(param, ids)
        if not ids:
            raise RequestError(
                f"{param} is empty; give at least one token", param=param, code="empty_prompt"
            )
        return tuple(ids)

    def _tokens(
        self, prompt: str | RenderedChat, add_special_tokens: bool | None, *, behind: bool
    ) -> Sequence[int]:
        tokenizer = self.model.tokenizer
        if isinstance(prompt, str):
            if behind:
                return _encode_behind(tokenizer, prompt)
            return tokenizer.encode(prompt, add_special_tokens=add_special_tokens is not False)
        return tokenizer.encode_chat(prompt, add_special_tokens=add_special_tokens is True)


def _encode_behind(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Tokens of a text that follows another: without the space that some put before a text."""
    if tokenizer.is_byte_level or tokenizer.backend is None:
        return tuple(tokenizer.encode(text, add_special_tokens=False))
    ids, places = tokenizer.encode_with_places(_ANCHOR + text, add_special_tokens=False)
    return tuple(token for token, place in zip(ids, places, strict=True) if place >= len(_ANCHOR))
