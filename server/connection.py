"""One HTTP/1.1 connection: its refusals in the contract's shape, and its own bounds.

uvicorn answers malformed requests in plain text, has no deadline for the head of a request, and
no bound on requests per connection nor on chunks of a body; these are added here.
"""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from .errors import HEAD_TOO_LARGE, JSON_MEDIA_TYPE, render_error

_MESSAGES = {
    431: HEAD_TOO_LARGE,
    400: "the request is not valid HTTP/1.1",
}
_MAX_BEGINNING_BYTES = 512
_READ_BYTES = 64 * 2**10
_FREE_CHUNKS = 256
_LEAST_CHUNK_BYTES = 64
_LINGER_S = 2.0
"""Time that a caller whose request was no HTTP has to read the refusal."""


class TinyChunks(h11.RemoteProtocolError):
    """A body in so many small chunks that taking it apart would keep the event loop."""


class BoundedParser(h11.Connection):
    """h11 with a bound on chunks: each costs as much as its frame does, however small it is."""

    def __init__(self, max_head_bytes: int) -> None:
        super().__init__(h11.SERVER, max_head_bytes)
        self._chunks = 0
        self._body_bytes = 0

    def next_event(self) -> Any:
        """As h11 has it.

        Raises:
            h11.RemoteProtocolError: also where a body's chunks are tiny.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._body_bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._body_bytes += len(event.data)
            if self._chunks > max(_FREE_CHUNKS, self._body_bytes // _LEAST_CHUNK_BYTES + 1):
                raise TinyChunks(
                    f"the body's first {self._chunks} chunks have {self._body_bytes} bytes; send "
                    f"chunks of {_LEAST_CHUNK_BYTES} bytes or more, or a Content-Length"
                )
        return event


@dataclass(slots=True)
class ConnectionUse:
    """How many requests a connection may still bring after the present one."""

    left: int

    @property
    def is_last(self) -> bool:
        """Whether the present request is the last one."""
        return self.left <= 0


class Connection(H11Protocol):
    """uvicorn's connection with the bounds above. `connection_class` sets them."""

    head_timeout_s: float
    max_requests: int
    refused: Callable[[int, bytes, str], None]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._use = ConnectionUse(self.max_requests)
        super().__init__(config, server_state, {**app_state, "connection_use": self._use}, _loop)
        assert config.h11_max_incomplete_event_size is not None, "settings bound the head"
        self.conn = BoundedParser(config.h11_max_incomplete_event_size)
        self._head_timer: asyncio.TimerHandle | None = None
        self._began = b""
        self._lingers = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the first request in time."""
        super().connection_made(transport)
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined] # of one turn on the loop
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        super().connection_lost(exc)
        self._stop_timer()

    def data_received(self, data: bytes) -> None:
        """Take what came; remember how a request begins, for the log."""
        if self._lingers:
            return
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._began = data[:_MAX_BEGINNING_BYTES]
        super().data_received(data)

    def handle_events(self) -> None:
        """Handle what came; expect the rest of a head that has begun in time."""
        before = self._current
        super().handle_events()
        if self._current is not before:
            self._use.left -= 1
        if self.is_answering or self._lingers:
            self._stop_timer()
        elif self._head_timer is None:
            self._expect_head()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or too much of it; 431 where the head is too large."""
        answering = self.is_answering and self.cycle.response_started
        if answering or self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()  # in the middle of an answer there is no room for another
            return
        error = sys.exception()
        line = self._began.partition(b"\r\n")[0]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        status = status if status in _MESSAGES else 400
        self.refused(status, line, str(error))
        message = str(error) if isinstance(error, TinyChunks) else _MESSAGES[status]
        body = render_error(status, message, code="invalid_http")
        for event in (
            h11.Response(
                status_code=status,
                headers=[
                    ("content-type", JSON_MEDIA_TYPE),
                    ("content-length", str(len(body))),
                    ("connection", "close"),
                ],
            ),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self._linger()

    def _linger(self) -> None:
        """Close when the caller does, or soon; until then what comes is thrown away.

        A socket that is closed with bytes unread resets the connection, and the refusal with it
        (RFC 9112, 9.6).
        """
        self._lingers = True
        self._stop_timer()
        self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)

    @property
    def _current(self) -> RequestResponseCycle | None:
        return self.cycle  # uvicorn declares it as always there, but it begins as None

    @property
    def is_answering(self) -> bool:
        """Whether a request's answer has not left yet."""
        current = self._current
        return current is not None and not current.response_complete

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing() and not self.is_answering:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def connection_class(
    *, head_timeout_s: float, max_requests: int, refused: Callable[[int, bytes, str], None]
) -> type[Connection]:
    """The class that uvicorn makes connections of, with its bounds.

    `refused`: told status, first line and reason of what was no HTTP.
    """
    seconds, requests, told = head_timeout_s, max_requests, refused

    class BoundConnection(Connection):
        head_timeout_s = seconds
        max_requests = requests
        refused = staticmethod(told)

    return BoundConnection
