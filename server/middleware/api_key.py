"""API keys: every route but /health needs one, where any is set.

A key is also a tenant: prefixes in the cache are shared only between requests of one key, since
how long an answer takes would tell what others have asked.
"""

import hmac
from collections.abc import Mapping
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import HttpError
from ..log import shown
from ..policies import Policy

OPEN_PATHS = frozenset({"/health"})


class ApiKeys:
    """Knows keys by their digests only, and what each may do."""

    def __init__(self, keys: Mapping[str, Policy]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]
        self._policies = dict(
            zip((digest.hex() for digest in self._digests), keys.values(), strict=True)
        )

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, key: bytes) -> str | None:
        """The tenant of a right key, None for a wrong one; both take as long."""
        digest = sha256(key).digest()
        known = sum(hmac.compare_digest(digest, each) for each in self._digests)
        return digest.hex() if known else None

    def policy(self, tenant: str) -> Policy:
        """What a tenant may do."""
        return self._policies[tenant]


class ApiKeyMiddleware:
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
        presented = _presented(Headers(scope=scope))
        tenant = self._keys.accept(presented)
        if tenant is None:
            raise HttpError(
                401,
                # OpenAI's words for it, by which clients tell what to ask of their user.
                f"{'Incorrect' if presented else 'No'} API key provided for {scope['method']} "
                f"{shown(scope['raw_path'])}; send Authorization: Bearer KEY with a key of this "
                "server",
                code="invalid_api_key",
                headers={"WWW-Authenticate": 'Bearer realm="penstock"'},
            )
        state = scope.setdefault("state", {})
        state["tenant"], state["policy"] = tenant, self._keys.policy(tenant)
        await self._app(scope, receive, send)


def _presented(headers: Headers) -> bytes:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
