"""Truncation of prompts: to how many tokens, and from which end."""

from dataclasses import dataclass
from typing import Literal

from .chat.template import RenderedChat

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """Keep `tokens` of a prompt, -1: as many as leave room for the answer. Cuts at `side`."""

    tokens: int
    side: Side = "left"

    def of_text(
        self, prompt: str | list[int] | RenderedChat, longest: int
    ) -> str | list[int] | RenderedChat:
        """The prompt cut to `longest` characters or token ids, an upper bound on what is kept."""
        if isinstance(prompt, RenderedChat):
            end = len(prompt.text)
            left = self.side == "left"
            return prompt.part(max(0, end - longest), end) if left else prompt.part(0, longest)
        return prompt[-longest:] if self.side == "left" else prompt[:longest]

    def keep(self, room: int) -> int:
        """How many tokens to keep at most; `room`: tokens that the context has for a prompt."""
        return max(1, room) if self.tokens < 0 else self.tokens

    def of_ids(self, ids: tuple[int, ...], room: int) -> tuple[int, ...]:
        """The ids to keep; `room`: tokens that the context has for a prompt."""
        keep = self.keep(room)
        return ids[-keep:] if self.side == "left" else ids[:keep]
