"""Reading bodies: bounded in size, in time, and in what all callers together may buffer."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from penstock.errors import OverloadedError

from .errors import JSON_MEDIA_TYPE, HttpError

_ALL_CALLERS = 32  # times the limit of one body
_DISCARD = 16  # times the limit of one body


class BodyReader:
    """Reads whole bodies. `max_bytes`: of one body. `timeout_s`: for all of one body."""

    def __init__(self, *, max_bytes: int, timeout_s: float) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._buffered_bytes = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncGenerator[bytes]:
        """The body of a JSON request; counted as buffered until the block ends.

        Raises:
            HttpError: too large (413), not JSON by its own word (415), or too slow (408).
            OverloadedError: all callers together have too much in flight.
            ClientDisconnect: the caller left.
        """
        _check_media_type(request.headers)
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._max_bytes:
            # Who waits for "100 Continue" sends nothing before it.
            if request.headers.get("expect", "").lower() != "100-continue":
                await self._discard(request.receive)
            raise self._too_large(f"{declared} bytes")
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._fill(body, request.receive)
            except TimeoutError:
                raise self._too_slow() from None
            yield bytes(body)
        finally:
            self._buffered_bytes -= len(body)

    async def _fill(self, body: bytearray, receive: Receive) -> None:
        more = True
        while more:
            message = await _receive(receive)
            piece: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            self._buffered_bytes += len(piece)
            body += piece
            if len(body) > self._max_bytes:
                if more:
                    await self._discard(receive)
                raise self._too_large("more")
            if self._buffered_bytes > _ALL_CALLERS * self._max_bytes:
                raise OverloadedError(
                    "the bodies of all requests together are too large at the moment; try again "
                    "in 1 s",
                    retry_after_s=1,
                )

    def _too_large(self, size: str) -> HttpError:
        return HttpError(
            413,
            f"the body has {size}, but this server takes at most {self._max_bytes} bytes "
            "(--max-body-bytes); send a shorter prompt, fewer prompts or smaller pictures",
            code="body_too_large",
            headers={"Connection": "close"},
        )

    def _too_slow(self) -> HttpError:
        return HttpError(
            408,
            f"the body did not arrive within {self._timeout_s:g} s; send it faster",
            code="body_timeout",
            headers={"Connection": "close"},
        )

    async def _discard(self, receive: Receive) -> None:
        """Take and drop what still comes, within reason.

        A caller who is still sending when we close sees a reset instead of the answer.
        """
        left = _DISCARD * self._max_bytes
        try:
            async with asyncio.timeout(self._timeout_s):
                while left > 0:
                    message = await _receive(receive)
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            return


async def _receive(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


def _check_media_type(headers: Mapping[str, str]) -> None:
    # Any web page can send the other types, or none, without the browser asking first.
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON_MEDIA_TYPE or (kind.startswith("application/") and kind.endswith("+json")):
        return
    sent = f"of the type {kind[:64]!r}" if kind else "of no type"
    remedy = "send Content-Type: application/json"
    if kind == "application/x-www-form-urlencoded":
        remedy += " (curl -d sends this type unless told: -H 'Content-Type: application/json')"
    raise HttpError(415, f"the body is {sent}; {remedy}", code="unsupported_media_type")
