"""One request over a connection of its own, by a caller who may leave at any moment of it."""

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

from penstock.bench.sse import DONE, EventSplitter
from penstock.bench.wire import ResponseDecoder

BLOCK_BYTES = 65_536
TIMEOUT_S = 60.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER for no time: the close is a reset


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """When a caller goes. `sent`: part of the request's bytes, 0 to 1, after which it goes.

    `events`: after so many events of the stream. `after_s`: so long after the request was sent.
    `reset`: with a TCP reset instead of an orderly close.
    """

    sent: float = 1.0
    events: int | None = None
    after_s: float | None = None
    reset: bool = False


@dataclass(slots=True, kw_only=True)
class Answer:
    """What arrived. `complete`: to its last byte. `events`: payloads of a stream."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    events: list[bytes] = field(default_factory=list[bytes])
    complete: bool = False

    @property
    def json(self) -> Any:
        """The body."""
        return orjson.loads(self.body)

    @property
    def done(self) -> bool:
        """Whether a stream came to its proper end."""
        return self.complete and bool(self.events) and self.events[-1] == DONE

    @property
    def text(self) -> str:
        """The first choice's text, streamed or not."""
        if not self.events:
            return _text_of(self.json)
        return "".join(_text_of(orjson.loads(e)) for e in self.events if e != DONE)

    @property
    def error(self) -> Any:
        """The error of a refusal, or of a stream that broke off; None: there is none."""
        bodies = [e for e in self.events if e != DONE] or [self.body]
        last = orjson.loads(bodies[-1]) if bodies[-1] else {}
        return last.get("error")


def _text_of(event: Mapping[str, Any]) -> str:
    for choice in event.get("choices", ()):
        if choice["index"] == 0:
            said = choice.get("delta") or choice.get("message") or choice
            return said.get("content") or said.get("text") or ""
    return ""


async def exchange(
    url: str,
    path: str,
    fields: Mapping[str, Any] | None,
    *,
    key: str | None = None,
    leave: Leave | None = None,
    on_event: Callable[[], None] | None = None,
) -> Answer:
    """POST `fields` as JSON (None: GET), and read the answer until it ends or `leave` says so.

    `on_event` is called when events of a stream have come.

    Raises:
        OSError, TimeoutError: no connection, or no byte for `TIMEOUT_S`.
        ProtocolError: the answer is no HTTP/1.1.
    """
    request = request_bytes(urlsplit(url).netloc, path, fields, key)
    return await exchange_bytes(url, request, leave=leave, on_event=on_event)


async def exchange_bytes(
    url: str,
    request: bytes,
    *,
    leave: Leave | None = None,
    on_event: Callable[[], None] | None = None,
) -> Answer:
    """The same with a request that is ready to be sent, whatever it is.

    Raises:
        OSError, TimeoutError, ProtocolError: as `exchange`.
    """
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    if leave is not None and leave.reset:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    answer = Answer()
    try:
        part = 1.0 if leave is None else leave.sent
        writer.write(request[: int(len(request) * part)])
        await writer.drain()
        if leave is None or leave.events is not None:
            await _read(reader, answer, None if leave is None else leave.events, on_event)
        elif leave.after_s is not None:
            with suppress(TimeoutError):  # that is when this caller goes
                await asyncio.wait_for(_read(reader, answer, None, on_event), leave.after_s)
        return answer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def request_bytes(
    host: str, path: str, fields: Mapping[str, Any] | None, key: str | None = None
) -> bytes:
    """The request of `exchange`, head and body; its connection closes behind it."""
    body = b"" if fields is None else orjson.dumps(fields)
    lines = [f"{'GET' if fields is None else 'POST'} {path} HTTP/1.1", f"host: {host}"]
    lines += ["connection: close"] + ([] if key is None else [f"authorization: Bearer {key}"])
    if fields is not None:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def _read(
    reader: asyncio.StreamReader,
    answer: Answer,
    events: int | None,
    on_event: Callable[[], None] | None,
) -> None:
    decoder, splitter = ResponseDecoder(), EventSplitter()
    while not decoder.complete:
        data = await asyncio.wait_for(reader.read(BLOCK_BYTES), TIMEOUT_S)
        if not data:
            decoder.feed_eof()
            break
        piece = decoder.feed(data)
        answer.status, answer.headers = decoder.status, decoder.headers
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            came = splitter.feed(piece)
            answer.events += came
            if came and on_event is not None:
                on_event()
            if events is not None and len(answer.events) >= events:
                return
        else:
            answer.body += piece
    answer.complete = decoder.complete
