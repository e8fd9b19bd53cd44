"""Ends a connection with the answer to its last request."""

from collections.abc import Awaitable, Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..connection import ConnectionUse


class ConnectionCloseMiddleware:
    """Sets `Connection: close` while the server ends, and on the last request of a connection.

    `closing`: whether the server ends; asked when a response begins.
    """

    def __init__(self, app: ASGIApp, *, closing: Callable[[], bool]) -> None:
        self._app = app
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        use: ConnectionUse | None = scope.get("state", {}).get("connection_use")

        def with_close(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start" and (
                self._closing() or (use is not None and use.is_last)
            ):
                MutableHeaders(scope=message)["Connection"] = "close"
            return send(message)

        await self._app(scope, receive, with_close)
