"""Serves HEAD wherever GET is served."""

from starlette.types import ASGIApp, Receive, Scope, Send


class HeadAsGetMiddleware:
    """Routes see HEAD as GET. The connection, which has its own scope, leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope["method"] = "GET"
        await self._app(scope, receive, send)
