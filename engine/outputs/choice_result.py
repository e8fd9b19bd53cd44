"""Everything that one choice of an answer brought."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..state.request import ChoiceDelta, FinishReason, TokenLogprobs


@dataclass(slots=True)
class ChoiceResult:
    """The sum of a choice's deltas."""

    parts: list[str] = field(default_factory=list[str])
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    places: list[int] = field(default_factory=list[int])
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def add(self, delta: ChoiceDelta) -> None:
        """Append a delta."""
        if delta.text:
            self.parts.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)
        self.places.extend(delta.places)
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason
            self.stop_reason = delta.stop_reason

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.parts)
