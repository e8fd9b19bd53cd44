"""Prompts that are cut to a length: from which end, and to how many tokens."""

from dataclasses import dataclass
from typing import Literal

from .chat.template import RenderedChat

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """Keep `tokens` of a prompt, -1: what leaves room for the answer; `side`: the end that goes."""

    tokens: int
    side: Side = "left"

    def of_text(
        self, prompt: str | list[int] | RenderedChat, longest: int
    ) -> str | list[int] | RenderedChat:
        """The prompt without what could not be kept anyway; `longest`: characters, or tokens."""
        if isinstance(prompt, RenderedChat):
            end = len(prompt.text)
            left = self.side == "left"
            return prompt.part(max(0, end - longest), end) if left else prompt.part(0, longest)
        return prompt[-longest:] if self.side == "left" else prompt[:longest]

    def keep(self, room: int) -> int:
        """How many tokens are kept at most; `room`: what the context has for a prompt."""
        return max(1, room) if self.tokens < 0 else self.tokens

    def of_ids(self, ids: tuple[int, ...], room: int) -> tuple[int, ...]:
        """What is kept; `room`: tokens that the context has for a prompt."""
        keep = self.keep(room)
        return ids[-keep:] if self.side == "left" else ids[:keep]
