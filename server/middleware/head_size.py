"""Bounds the size of a request's head."""

from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import HEAD_TOO_LARGE, HttpError


class HeadSizeMiddleware:
    """Refuses heads of more than `max_bytes`. h11 does so only where they come in pieces."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            HttpError: its head is too large (431).
        """
        if scope["type"] == "http" and _head_bytes(scope) > self._max_bytes:
            raise HttpError(431, HEAD_TOO_LARGE, code="invalid_http")
        await self._app(scope, receive, send)


def _head_bytes(scope: Scope) -> int:
    lines = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    return lines + len(scope["raw_path"]) + len(scope["query_string"])
