"""Server-sent events: one answer from submission to `[DONE]`."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from starlette.responses import Response

from penstock.errors import EXITS, PenstockError

from .disconnect import until_disconnect
from .errors import error_body
from .generations import merged, submitted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.types import Receive, Scope, Send

    from ..engine.state.request import Request
    from .backend import AnswerStream, Backend
    from .protocol.plan import StreamWriter

logger = logging.getLogger(__name__)

_DONE = b"data: [DONE]\n\n"
_HEARTBEAT = b": still working\n\n"
_EARLY = 0.9
"""Part of the promised silence after which the comment is due: the loop may be busy then."""


class EventStream(Response):
    """Submits the requests and streams what they bring.

    The status is sent with the first tokens, so that whatever fails before them is an ordinary
    error; a caller who waits longer gets it with a comment, and then a comment now and then,
    because proxies cut silent connections. `since_s`: when the caller began to wait, by the event
    loop's clock.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        engine: Backend,
        requests: Sequence[Request],
        writer: StreamWriter,
        headers: Mapping[str, str],
        *,
        heartbeat_s: float,
        since_s: float,
    ) -> None:
        super().__init__(headers=headers)
        del self.headers["content-length"]
        self.headers["Cache-Control"] = "no-cache"
        self.headers["X-Accel-Buffering"] = "no"
        self._engine = engine
        self._requests = requests
        self._writer = writer
        self._heartbeat_s = heartbeat_s
        self._since_s = since_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            PenstockError: refused or failed before the first byte.
        """
        del scope
        output = _Output(send, self.raw_headers, since_s=self._since_s)
        with submitted(self._engine, self._requests) as generations:
            beating = asyncio.create_task(output.keep_alive(_EARLY * self._heartbeat_s))
            try:
                await until_disconnect(receive, self._pump(generations, output))
            finally:
                beating.cancel()
                await asyncio.gather(beating, return_exceptions=True)

    async def _pump(self, generations: Sequence[AnswerStream], output: _Output) -> None:
        writer = self._writer
        opening: bytes | None = writer.opening()
        try:
            async for batch in merged(generations):
                events = b"".join(
                    writer.events(number, delta, generations[number]) for number, delta in batch
                )
                if opening is not None:
                    events, opening = opening + events, None
                if events:
                    await output.write(events)
            await output.write((opening or b"") + writer.closing(generations) + _DONE, last=True)
        except EXITS:
            raise
        except BaseException as error:
            if not output.started:
                raise
            if output.ended:
                return
            expected = isinstance(error, PenstockError)
            logger.warning("a stream ended with an error: %s", error, exc_info=not expected)
            await output.write(b"data: " + error_body(error) + b"\n\n", last=True)


class _Output:
    """The connection's sending side."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]], *, since_s: float) -> None:
        self._send = send
        self._headers = headers
        self._written_s = since_s
        self._clock = asyncio.get_running_loop().time
        self.started = False
        self.ended = False

    async def write(self, data: bytes, *, last: bool = False) -> None:
        self.ended = last
        if not self.started:
            self.started = True
            await self._send(
                {"type": "http.response.start", "status": 200, "headers": self._headers}
            )
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        self._written_s = self._clock()

    async def keep_alive(self, silence_s: float) -> None:
        """Write a comment whenever nothing has been written for that long, until the end."""
        while not self.ended:
            left_s = self._written_s + silence_s - self._clock()
            if left_s > 0:
                await asyncio.sleep(left_s)
            else:
                await self.write(_HEARTBEAT)
