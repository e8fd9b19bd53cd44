"""What the routes share: their services, their bodies, their headers."""

from __future__ import annotations

import logging
import re
import secrets
from typing import TYPE_CHECKING, cast

import orjson
from starlette.responses import Response

from ..errors import JSON_MEDIA_TYPE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from ..services import Services

logger = logging.getLogger(__name__)

IGNORED_HEADER = "X-Penstock-Ignored"
_MAX_NAMED = 16


def services_of(request: Request) -> Services:
    """What `create_app` made."""
    return cast("Services", request.app.state.services)


def tenant_of(request: Request) -> str:
    """Whose prefixes the request may share: those of its API key, or everybody's without keys."""
    return getattr(request.state, "tenant", "")


def answer_id(kind: str) -> str:
    """A fresh id, as in cmpl-0123."""
    return f"{kind}-{secrets.token_hex(16)}"


def json_response(content: object, headers: dict[str, str] | None = None) -> Response:
    """JSON with status 200."""
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    return Response(body, media_type=JSON_MEDIA_TYPE, headers=headers)


def ignored_headers(request: Request, ignored: Sequence[str]) -> dict[str, str]:
    """Names the fields that were ignored, in the answer and in the log."""
    if not ignored:
        return {}
    names = [re.sub(r"[^A-Za-z0-9_.-]", "?", name)[:64] for name in ignored[:_MAX_NAMED]]
    if len(ignored) > _MAX_NAMED:
        names.append(f"and-{len(ignored) - _MAX_NAMED}-more")
    listed = ", ".join(names)
    logger.info("request %s: ignored %s", request.state.request_id, listed)
    return {IGNORED_HEADER: listed}
