"""What the streams of both endpoints share: the ready-made bytes around each chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

import orjson

from .plan import B, usages
from .search_answer import NodeEvents
from .usage import RunningUsage, usage_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...engine.state.request import ChoiceDelta
    from .plan import Answered, Plan


class ChunkStream(Generic[B]):
    """Base of a stream's writer. The plain path joins ready-made bytes around one JSON string.

    `kind`: the `object` of its chunks. `empty`: the fields of a choice without text. `text_end`:
    what follows the text of a choice, up to the end of `choices`.

    `_head` ends before the number of a choice; `_tail` begins behind `choices`.
    """

    def __init__(self, plan: Plan[B], *, kind: str, empty: dict[str, Any], text_end: bytes) -> None:
        self._plan = plan
        self._choice_end = text_end
        fields = {"id": plan.id, "object": kind, "created": plan.created, "model": plan.model}
        # What every chunk shares: {"id":...,"model":...} without its closing brace.
        common = b"data: " + orjson.dumps(fields)[:-1]
        has_usage = plan.body.include_usage
        self._nodes = NodeEvents(fields, empty, plan.requests, has_usage=has_usage)
        self._head = common + b',"choices":[{"index":'
        self._empty = common + b',"choices":[]'
        self._running = RunningUsage(plan.requests) if plan.body.continuous_usage else None
        tail = b',"usage":null}\n\n' if has_usage else b"}\n\n"
        self._end_with(tail if self._running is None else self._running.tail)

    @property
    def thought_tokens(self) -> int | None:
        """Tokens of thoughts, of all choices; None: there are no thoughts to read."""
        return None

    def _end_with(self, tail: bytes) -> None:
        """What chunks end with from now on."""
        self._tail = tail
        self._text_end = self._choice_end + tail

    def _count(self, prompt: int, delta: ChoiceDelta, answered: Answered) -> None:
        """Put the usage so far into the chunks; for streams that have `_running`."""
        assert self._running is not None
        self._running.add(prompt, delta, answered)
        self._end_with(self._running.tail)

    def closing(self, answered: Sequence[Answered]) -> bytes:
        """The usage chunk, if that was asked for."""
        if not self._plan.body.include_usage:
            return b""
        usage = orjson.dumps(usage_object(usages(answered), self.thought_tokens))
        return self._empty + b',"usage":' + usage + b"}\n\n"
