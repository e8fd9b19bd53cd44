"""Keep-alive connections to one server, and the exchange of one streamed request."""

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from .answer import StreamedAnswer
from .record import RequestRecord
from .wire import ProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where requests go; `path` is the prefix of the API, such as `/v1`."""

    host: str
    port: int
    tls: bool
    path: str

    @classmethod
    def parse(cls, base_url: str) -> "Origin":
        """Read a base URL; one without a path gets `/v1`.

        Raises:
            ValueError: not an http or https URL.
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{base_url!r} is not an http:// or https:// URL")
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        return cls(host=parts.hostname, port=port, tls=tls, path=parts.path.rstrip("/") or "/v1")

    @property
    def authority(self) -> str:
        """Host and port, as the Host header and URLs write them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The base URL, normalised."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.path}"


class _Connection(asyncio.Protocol):
    """One connection; it carries one exchange at a time."""

    def __init__(self) -> None:
        self.closed = False
        self.used = False
        self._transport: asyncio.Transport | None = None
        self._answer: StreamedAnswer | None = None
        self._ended: asyncio.Future[str | None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def exchange(self, request: bytes, answer: StreamedAnswer) -> str | None:
        """Send `request` and feed `answer`; returns what went wrong in transport, or None."""
        assert self._transport is not None
        self.used = True
        self._answer = answer
        self._ended = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._ended
        finally:
            self._answer = None

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            self.abort()
            return
        try:
            self._answer.feed(data, time.perf_counter())
        except ProtocolError as error:
            self._end(str(error))
            self.abort()
            return
        if self._answer.decoder.complete:
            if not self._answer.decoder.keep_alive:
                self.abort()
            self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._answer is not None:
            self._answer.decoder.feed_eof()
            cut = not self._answer.decoder.complete
            self._end("the server closed the connection" if cut else None)

    def abort(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def _end(self, failure: str | None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(failure)


@dataclass(slots=True)
class ConnectionPool:
    """Idle connections to one origin.

    Connections are opened before a request's clock starts, so the figures include the time of the
    server and the network, but not of handshakes.
    """

    origin: Origin
    headers: dict[str, str]
    timeout_s: float
    _idle: list[_Connection] = field(default_factory=list[_Connection])
    _tls: ssl.SSLContext | None = None

    async def post(self, path: str, body: bytes) -> RequestRecord:
        """Send one request and read its stream to the end; a failure is recorded, not raised."""
        request = self._head(path, len(body)) + body
        answer = StreamedAnswer(time.perf_counter())
        connection: _Connection | None = None
        try:
            async with asyncio.timeout(self.timeout_s):
                while True:
                    connection = await self._acquire()
                    stale_possible = connection.used
                    answer = StreamedAnswer(time.perf_counter())
                    failure = await connection.exchange(request, answer)
                    # The server may close an idle connection just as it is reused: try again.
                    if failure is None or not stale_possible or answer.decoder.status:
                        break
        except TimeoutError:
            failure = f"no complete answer after {self.timeout_s:g} s"
        except OSError as error:
            failure = f"cannot connect: {error.strerror or error}"
        finally:
            if connection is not None:
                self._release(connection, reusable=answer.decoder.keep_alive)
        return answer.record(time.perf_counter(), failure=failure)

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    async def _acquire(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        if self.origin.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            _Connection, self.origin.host, self.origin.port, ssl=self._tls
        )
        return connection

    def _release(self, connection: _Connection, *, reusable: bool) -> None:
        if reusable and not connection.closed:
            self._idle.append(connection)
        else:
            connection.abort()

    def _head(self, path: str, length_bytes: int) -> bytes:
        lines = [
            f"POST {self.origin.path}{path} HTTP/1.1",
            f"host: {self.origin.authority}",
            "content-type: application/json",
            "accept: text/event-stream",
            "accept-encoding: identity",
            f"content-length: {length_bytes}",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
