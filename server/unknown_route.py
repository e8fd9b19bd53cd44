"""Refusals of paths and methods that this server does not have, with the one that was meant."""

import re
from collections.abc import Iterable
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Match, Router

from .errors import HttpError
from .log import shown


def unknown_route(request: Request, error: HTTPException) -> HttpError:
    """What to answer where the router found no route (404), or none for the method (405).

    A route of a package may raise the same exception, with words of its own.
    """
    if error.detail != HTTPStatus(error.status_code).phrase:
        return HttpError(error.status_code, str(error.detail), headers=error.headers)
    asked = f"{request.method} {shown(request.scope['raw_path'])}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        if "GET" in allowed.split(", "):
            allowed += ", HEAD"
        return HttpError(
            405,
            f"there is no route {asked}; this path takes {allowed}",
            code="method_not_allowed",
            headers={"Allow": allowed},
        )
    meant = next(
        (path for path in _corrections(request.url.path) if _exists(request.app.router, path)), None
    )
    hint = "see /openapi.json for what there is"
    if meant is not None:
        hint = f"{meant} is one: clients take a base URL that ends in /v1, once"
    return HttpError(404, f"there is no route {asked}; {hint}", code="route_not_found")


def _corrections(path: str) -> Iterable[str]:
    """What may have been meant."""
    plain = re.sub(r"/{2,}", "/", path).rstrip("/")
    once = re.sub(r"^(/v1)+(?=/)", "", plain)
    yield plain
    yield "/v1" + once
    yield once


def _exists(router: Router, path: str) -> bool:
    scope = {"type": "http", "path": path, "method": "GET", "headers": [], "root_path": ""}
    return any(route.matches(scope)[0] is not Match.NONE for route in router.routes)
