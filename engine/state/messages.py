"""What the engine's loop is told."""

import queue
from dataclasses import dataclass

from .request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """End a request, or one choice of it."""

    request_id: str
    index: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Let go of the keys and values that requests have left under these names."""

    names: tuple[str, ...]


Message = Request | Abort | Release
Inbox = queue.SimpleQueue[Message | None]
"""Messages in order; None ends the loop."""
