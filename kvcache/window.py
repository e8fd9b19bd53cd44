"""Attention sinks and a window (Xiao et al. 2023, arXiv:2309.17453): `window`."""

from pydantic import BaseModel, Field

from ..registry import STRICT
from .base import Amount, CachePolicy, Retention, tokens_of


class WindowParameters(BaseModel):
    """`recent`: newest tokens that are kept, or a share of the prompt. `sink`: first ones kept.

    `interval`: tokens between two evictions.
    """

    model_config = STRICT

    recent: Amount = 1024
    sink: int = Field(default=4, ge=0, le=1024)
    interval: int = Field(default=16, ge=1, le=1024)


class Window(CachePolicy[WindowParameters]):
    """Keeps the first tokens and the newest: it observes nothing, so the oldest key goes."""

    name = "window"
    parameters = WindowParameters
    summary = "Keep the first few tokens and a window of the newest; constant memory."

    def retention(self, parameters: WindowParameters, prompt_tokens: int) -> Retention:
        """See `CachePolicy`."""
        return Retention(
            heavy=parameters.sink,
            recent=max(1, tokens_of(parameters.recent, prompt_tokens)),
            sink=parameters.sink,
            interval=parameters.interval,
        )

    def fused(self, parameters: WindowParameters) -> bool:
        """See `CachePolicy`."""
        return True


WINDOW = Window()
