"""Messages to the engine's loop: `Request`, `Abort` and `Release`."""

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
    """Free the keys and values that are retained under these names."""

    names: tuple[str, ...]


Message = Request | Abort | Release
Inbox = queue.SimpleQueue[Message | None]
"""Messages in order; None ends the loop."""
