"""Prompts that are cut to a length: from which end, and to how many tokens."""

from dataclasses import dataclass
from typing import Literal

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """Keep `tokens` of a prompt, -1: what leaves room for the answer; `side`: the end that goes."""

    tokens: int
    side: Side = "left"

    def of_text(self, prompt: str | list[int], longest: int) -> str | list[int]:
        """The prompt without what could not be kept anyway; `longest`: characters, or tokens."""
        return prompt[-longest:] if self.side == "left" else prompt[:longest]

    def of_ids(self, ids: tuple[int, ...], room: int) -> tuple[int, ...]:
        """What is kept; `room`: tokens that the context has for a prompt."""
        keep = max(1, room) if self.tokens < 0 else self.tokens
        return ids[-keep:] if self.side == "left" else ids[:keep]
