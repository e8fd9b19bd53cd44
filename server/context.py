"""Request ids, the access log and the request counter."""

import logging
import re
import secrets
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .connection import ConnectionUse
from .metrics import HttpMetrics

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("penstock.access")

LEFT = 499  # nginx's status for a caller that closed the connection
NO_ROUTE = "other"
_POLLED = frozenset({"/health", "/metrics"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_SHOWN_BYTES = 200


class ContextMiddleware:
    """The outermost of our middleware. Pure ASGI: it sees every message and delays none.

    `closing`: whether connections are to be closed after the current answer. HEAD is served as
    GET; the connection leaves the body out.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: HttpMetrics,
        clock: Callable[[], float],
        closing: Callable[[], bool],
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = self._clock()
        method: str = scope["method"]
        scope = {**scope, "method": "GET" if method == "HEAD" else method}
        request_id = _request_id(Headers(scope=scope))
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        use: ConnectionUse | None = state.get("connection_use")
        status = LEFT

        async def annotated(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                if self._closing() or (use is not None and use.is_last):
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, annotated)
        except ClientDisconnect:
            pass
        finally:
            route = _route(scope)
            self._metrics.requests.labels(route, str(status)).inc()
            access_logger.log(
                logging.DEBUG if route in _POLLED else logging.INFO,
                "%s %s %d %.0f ms %s",
                shown(method.encode()),
                shown(scope["raw_path"]),
                status,
                (self._clock() - began_s) * 1000,
                request_id,
            )


def record_refusal(metrics: HttpMetrics, status: int, line: bytes, reason: str) -> None:
    """Log and count a request that the connection refused. `line`: how the request began."""
    metrics.requests.labels(NO_ROUTE, str(status)).inc()
    access_logger.info("%s %d refused: %s", shown(line), status, reason)


def shown(sent: bytes) -> str:
    """Untrusted bytes as text for logs and error messages: escaped and cut."""
    text = sent[:_SHOWN_BYTES].decode("latin-1").encode("unicode_escape").decode()
    return text + "..." if len(sent) > _SHOWN_BYTES else text


def _request_id(headers: Headers) -> str:
    """The caller's id where it is safe in headers and logs; else a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"


def _route(scope: Scope) -> str:
    route = scope.get("route")
    return str(getattr(route, "path", NO_ROUTE))
