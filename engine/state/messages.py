"""Messages to the engine's loop: `Request`, `Abort`, `Release` and `DropAdapter`."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class DropAdapter:
    """Forget the adapter of this key."""

    key: str


Message = Request | Abort | Release | DropAdapter
Inbox = queue.SimpleQueue[Message | None]
"""Messages in order; None ends the loop."""
