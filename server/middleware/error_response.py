"""Answers exceptions that no route has answered, unexpected ones included."""

import logging
from collections.abc import Awaitable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.errors import EXITS, PenstockError

from ..errors import error_response

logger = logging.getLogger(__name__)


class ErrorResponseMiddleware:
    """Turns exceptions into error responses; an unexpected one is a 500 without details."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        def noted(message: Message) -> Awaitable[None]:
            nonlocal begun
            begun = True
            return send(message)

        try:
            await self._app(scope, receive, noted)
        except (ClientDisconnect, *EXITS):
            raise
        except BaseException as error:
            if not isinstance(error, PenstockError):
                logger.exception("request %s failed", scope["state"]["request_id"])
            if begun:
                raise  # the response has begun: only closing the connection is left
            await error_response(error)(scope, receive, send)
