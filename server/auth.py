"""API keys: every route but /health needs one, where any is set.

A key is also a tenant: prefixes in the cache are shared only between requests of one key, since
how long an answer takes would tell what others have asked.
"""

import hmac
from collections.abc import Iterable
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .context import shown
from .errors import HttpError

OPEN_PATHS = frozenset({"/health"})


class ApiKeys:
    """Knows keys by their digests only."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, key: bytes) -> str | None:
        """The tenant of a right key, None for a wrong one; both take as long."""
        digest = sha256(key).digest()
        known = sum(hmac.compare_digest(digest, each) for each in self._digests)
        return digest.hex() if known else None


class AuthMiddleware:
    """Refuses requests without a right `Authorization: Bearer KEY`.

    OPTIONS needs none: browsers ask with it what they may send, before they send a key.
    """

    def __init__(self, app: ASGIApp, *, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on.

        Raises:
            HttpError: the key is missing or wrong (401).
        """
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or scope["method"] == "OPTIONS":
            await self._app(scope, receive, send)
            return
        tenant = self._keys.accept(_presented(Headers(scope=scope)))
        if tenant is None:
            raise HttpError(
                401,
                f"the API key of {scope['method']} {shown(scope['raw_path'])} is missing or wrong; "
                "send Authorization: Bearer KEY with a key of this server",
                code="invalid_api_key",
                headers={"WWW-Authenticate": 'Bearer realm="penstock"'},
            )
        scope.setdefault("state", {})["tenant"] = tenant
        await self._app(scope, receive, send)


def _presented(headers: Headers) -> bytes:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
