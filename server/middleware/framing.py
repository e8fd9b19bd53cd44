"""Refuses requests whose length or target another server could read differently."""

import re
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import HttpError

_ABSOLUTE = re.compile(rb"https?://([^/]*)(.*)", re.IGNORECASE)


class FramingMiddleware:
    """Lets only heads with one meaning pass, and turns an absolute target into its path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            HttpError: its length or its target is ambiguous (400).
        """
        if scope["type"] == "http":
            _check_length(scope)
            _make_relative(scope)
        await self._app(scope, receive, send)


def _check_length(scope: Scope) -> None:
    """One length only: of two, a proxy in front may believe the other (RFC 9112, 6.1)."""
    headers = Headers(scope=scope)
    if "transfer-encoding" not in headers:
        return
    if "content-length" in headers:
        why = "it has Content-Length and Transfer-Encoding; send one of them"
    elif scope["http_version"] == "1.0":
        why = "HTTP/1.0 has no Transfer-Encoding; send Content-Length"
    else:
        return
    raise HttpError(
        400,
        f"the request's length is ambiguous: {why}",
        code="invalid_http",
        headers={"Connection": "close"},
    )


def _make_relative(scope: Scope) -> None:
    """Turn a proxy's form of the target, with scheme and host, into a path (RFC 9112, 3.2.2)."""
    absolute = _ABSOLUTE.fullmatch(scope["raw_path"])
    if absolute is None:
        return
    host, path = absolute[1], absolute[2] or b"/"
    if host.lower() != Headers(scope=scope).get("host", "").lower().encode("latin-1"):
        raise HttpError(
            400,
            "the request's target names another host than its Host header; send the path alone",
            code="invalid_http",
            headers={"Connection": "close"},
        )
    scope["raw_path"], scope["path"] = path, unquote(path.decode("ascii"))
