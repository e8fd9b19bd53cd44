"""A request's prompt as targets see it, for the further prompts that they derive from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import RequestError

if TYPE_CHECKING:
    from .intake import Intake


@dataclass(frozen=True, slots=True)
class IntakePrompt:
    """A request's prompt as targets see it."""

    ids: tuple[int, ...]
    _intake: Intake

    @property
    def text(self) -> str:
        """Its text, special tokens included."""
        return self._intake.tokenizer.decode(self.ids, skip_special_tokens=False)

    def encode(self, text: str, *, param: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Tokens of a further prompt, which begins as prompts of this model do."""
        return self._intake.encode(text, param=param, add_special_tokens=add_special_tokens)

    def render(self, messages: Sequence[Mapping[str, str]], *, param: str) -> tuple[int, ...]:
        """Tokens of a chat, ready for the assistant's answer."""
        try:
            chat = self._intake.tokenizer.render_chat(messages)
        except RequestError as error:
            raise RequestError(f"{param}: {error}", param=param, code=error.code) from error
        return self._intake.encode(chat, param=param)
