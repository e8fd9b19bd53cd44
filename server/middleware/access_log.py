"""Logs and counts every request."""

import logging
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..log import shown
from ..metrics import HttpMetrics

access_logger = logging.getLogger("penstock.access")

LEFT = 499  # nginx's status for a caller that closed the connection
NO_ROUTE = "other"
_POLLED = frozenset({"/health", "/metrics"})


class AccessLogMiddleware:
    """The outermost: it sees every request, and the id that `RequestIdMiddleware` gives it.

    Inner layers get a copy of the scope, in which they set the route; the connection keeps its own.
    """

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics, clock: Callable[[], float]) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = self._clock()
        method: str = scope["method"]
        inner = {**scope, "state": scope.get("state", {})}
        status = LEFT

        def noted(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        try:
            await self._app(inner, receive, noted)
        except ClientDisconnect:
            pass
        finally:
            route = _route(inner)
            self._metrics.requests.labels(route, str(status)).inc()
            access_logger.log(
                logging.DEBUG if route in _POLLED else logging.INFO,
                "%s %s %d %.0f ms %s",
                shown(method.encode()),
                shown(scope["raw_path"]),
                status,
                (self._clock() - began_s) * 1000,
                inner["state"]["request_id"],
            )


def record_refusal(metrics: HttpMetrics, status: int, line: bytes, reason: str) -> None:
    """Log and count a request that the connection refused. `line`: how the request began."""
    metrics.requests.labels(NO_ROUTE, str(status)).inc()
    access_logger.info("%s %d refused: %s", shown(line), status, reason)


def _route(scope: Scope) -> str:
    route = scope.get("route")
    return str(getattr(route, "path", NO_ROUTE))
