"""A request's prompt as targets see it, to derive the prompts of further contexts from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import RequestError
from .prompt_encoder import PromptEncoder


@dataclass(frozen=True, slots=True)
class TargetPrompt:
    """See `decoding.target.Prompt`."""

    ids: tuple[int, ...]
    _encoder: PromptEncoder

    @property
    def text(self) -> str:
        """Its text, special tokens included."""
        return self._encoder.model.tokenizer.decode(self.ids, skip_special_tokens=False)

    def encode(self, text: str, *, param: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Tokens of a further prompt, by default with the special tokens that begin prompts."""
        return self._encoder.encode(text, param=param, add_special_tokens=add_special_tokens)

    def render(self, messages: Sequence[Mapping[str, str]], *, param: str) -> tuple[int, ...]:
        """Tokens of a chat, ready for the assistant's answer."""
        try:
            chat = self._encoder.model.tokenizer.render_chat(messages)
        except RequestError as error:
            raise RequestError(f"{param}: {error}", param=param, code=error.code) from error
        return self._encoder.encode(chat, param=param)
