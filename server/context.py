"""What surrounds every request: its id, its line in the log, its count, its last resort."""

import logging
import re
import secrets
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .connection import ConnectionUse
from .errors import HEAD_TOO_LARGE, HttpError, error_response
from .metrics import HttpMetrics

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("penstock.access")

LEFT = 499  # nginx's number for a caller who did not wait
_POLLED = frozenset({"/health", "/metrics"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class ContextMiddleware:
    """Outermost of ours. Pure ASGI: it sees every message and delays none.

    `max_head_bytes`: h11 refuses longer heads only where they come in pieces; here all of them.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: HttpMetrics,
        clock: Callable[[], float],
        max_head_bytes: int,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._clock = clock
        self._max_head_bytes = max_head_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; errors that nobody expected become a 500 here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = self._clock()
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
                if use is not None and use.is_last:
                    headers["Connection"] = "close"
            await send(message)

        try:
            if _head_bytes(scope) > self._max_head_bytes:
                refusal = HttpError(431, HEAD_TOO_LARGE, code="invalid_http")
                await error_response(refusal)(scope, receive, annotated)
                return
            await self._app(scope, receive, annotated)
        except ClientDisconnect:
            pass
        except Exception as error:
            logger.exception("request %s failed", request_id)
            if status != LEFT:
                raise  # the answer has begun: closing the connection is all that is left
            await error_response(error)(scope, receive, annotated)
        finally:
            route = _route(scope)
            self._metrics.requests.labels(route, str(status)).inc()
            access_logger.log(
                logging.DEBUG if route in _POLLED else logging.INFO,
                "%s %s %d %.0f ms %s",
                scope["method"],
                route,
                status,
                (self._clock() - began_s) * 1000,
                request_id,
            )


def _head_bytes(scope: Scope) -> int:
    lines = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    return lines + len(scope.get("raw_path") or b"") + len(scope["query_string"])


def _request_id(headers: Headers) -> str:
    """The caller's, where it is harmless in headers and logs."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"


def _route(scope: Scope) -> str:
    route = scope.get("route")
    return str(getattr(route, "path", "other"))
