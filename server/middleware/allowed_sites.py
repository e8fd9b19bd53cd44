"""Refuses requests for other hosts, and from web pages that are not trusted (`../site.py`)."""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import HttpError, error_response
from ..site import ANY, Hosts, is_same_origin

_SHOWN_CHARS = 100


class AllowedSitesMiddleware:
    """Refuses what was meant for another host, and pages of origins that are not trusted."""

    def __init__(self, app: ASGIApp, *, hosts: Hosts | None, origins: Collection[str]) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        refusal = None
        if scope["type"] == "http":
            refusal = self._refusal(scope["method"], Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await error_response(refusal)(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> HttpError | None:
        host = headers.get("host")
        if self._hosts is not None and not self._hosts.accept(host):
            name = (host or "")[:_SHOWN_CHARS]
            return HttpError(
                421,
                f"this server does not go by the name {name!r}; call it as localhost or 127.0.0.1, "
                "or start it with --allowed-hosts and that name",
                code="host_not_allowed",
            )
        if self._is_trusted(method, host or "", headers):
            return None
        origin = headers.get("origin", "of another site")[:_SHOWN_CHARS]
        return HttpError(
            403,
            f"web pages of the origin {origin!r} may not call this server; start it with "
            "--cors-origin and that origin to let them",
            code="origin_not_allowed",
        )

    def _is_trusted(self, method: str, host: str, headers: Headers) -> bool:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if ANY in self._origins or origin in self._origins:
            return True
        if site in {"same-origin", "none"}:
            return True
        if origin is not None:
            return is_same_origin(origin, host)
        # Browsers name the origin of everything but plain GETs. Links may lead here from anywhere.
        return site != "cross-site" or (
            method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        )
