"""One streamed answer, followed from response bytes to a `RequestRecord`."""

from typing import Any

import orjson

from .record import RequestRecord
from .sse import DONE, EventSplitter
from .wire import ResponseDecoder

MAX_REASON_CHARS = 200


class StreamedAnswer:
    """Collects the times, the counts and the failure reason of one request."""

    def __init__(self, started_s: float) -> None:
        self.started_s = started_s
        self.decoder = ResponseDecoder()
        self._events = EventSplitter()
        self._chunk_times_s: list[float] = []
        self._last_event_s: float | None = None
        self._error_body = b""
        self._error: str | None = None
        self._finish_reason: str | None = None
        self._prompt_tokens: int | None = None
        self._completion_tokens: int | None = None

    def feed(self, data: bytes, now_s: float) -> None:
        """Take bytes that arrived at `now_s`; events of one piece share its time.

        Raises:
            ProtocolError: the bytes are no HTTP response.
        """
        body = self.decoder.feed(data)
        if self.decoder.status != 200:
            self._error_body += body
            return
        for payload in self._events.feed(body):
            self._last_event_s = now_s
            if payload != DONE:
                self._take(payload, now_s)

    def record(self, now_s: float, *, failure: str | None = None) -> RequestRecord:
        """The record of a request that ended at `now_s`; `failure` is what the transport says."""
        error = self._why_failed(failure)
        ended_s = now_s if error or self._last_event_s is None else self._last_event_s
        return RequestRecord(
            started_s=self.started_s,
            ended_s=ended_s,
            chunk_times_s=tuple(self._chunk_times_s),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            finish_reason=self._finish_reason,
            error=None if error is None else error[:MAX_REASON_CHARS],
        )

    def _take(self, payload: bytes, now_s: float) -> None:
        try:
            self._read(orjson.loads(payload), now_s)
        except orjson.JSONDecodeError:
            self._error = self._error or f"an event is not JSON: {payload[:64]!r}"
        except (AttributeError, TypeError):
            # Unexpected JSON: checking each level first would cost more than the parsing.
            self._error = self._error or f"an event is not a chunk: {payload[:64]!r}"

    def _read(self, event: Any, now_s: float) -> None:
        if event.get("error"):
            self._error = self._error or f"error event: {error_message(event)}"
            return
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or choice
            if (
                delta.get("text")
                or delta.get("content")
                or delta.get("reasoning_content")
                or delta.get("tool_calls")
            ):
                self._chunk_times_s.append(now_s)
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
        usage = event.get("usage")
        if usage:
            self._prompt_tokens = usage.get("prompt_tokens")
            self._completion_tokens = usage.get("completion_tokens")

    def _why_failed(self, failure: str | None) -> str | None:
        status = self.decoder.status
        if status not in (0, 200):
            return f"HTTP {status}: {_body_message(self._error_body)}"
        if self._error:
            return self._error
        if failure:
            return failure
        if self._finish_reason is None:
            return "the stream ended without a finish_reason"
        return None


def error_message(body: dict[str, Any]) -> str:
    """The message of an error body, in any of the usual shapes."""
    error = body.get("error") or body.get("detail") or body.get("message")
    if isinstance(error, dict):
        return str(error.get("message") or error)
    return str(error)


def _body_message(body: bytes) -> str:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace").strip() or "(no body)"
    return error_message(parsed) if isinstance(parsed, dict) else str(parsed)
