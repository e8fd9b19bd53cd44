"""The head of a request: as long as it may be, and with one meaning."""

import re
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import HEAD_TOO_LARGE, HttpError

_ABSOLUTE = re.compile(rb"https?://([^/]*)(.*)", re.IGNORECASE)


class HeadMiddleware:
    """Refuses heads that are too long, or that another server could read differently.

    `max_bytes`: h11 refuses longer heads only where they come in pieces; here all of them.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            HttpError: it is refused.
        """
        if scope["type"] == "http":
            if _head_bytes(scope) > self._max_bytes:
                raise HttpError(431, HEAD_TOO_LARGE, code="invalid_http")
            _check_framing(scope)
            _make_relative(scope)
        await self._app(scope, receive, send)


def _head_bytes(scope: Scope) -> int:
    lines = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    return lines + len(scope["raw_path"]) + len(scope["query_string"])


def _check_framing(scope: Scope) -> None:
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
