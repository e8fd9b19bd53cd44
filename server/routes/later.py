"""What the contract has and this server has not yet: a 400 that says so, rather than a 404."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from penstock.errors import RequestError

router = APIRouter(include_in_schema=False)


@router.post("/v1/responses")
async def create_response() -> Response:
    """OpenAI's newer endpoint.

    Raises:
        RequestError: always.
    """
    raise _not_yet("/v1/responses", "use /v1/chat/completions")


@router.get("/")
async def playground() -> Response:
    """The page for trying things out.

    Raises:
        RequestError: always.
    """
    raise _not_yet("the playground", "see /openapi.json for the endpoints that exist")


def _not_yet(what: str, instead: str) -> RequestError:
    return RequestError(
        f"{what} is not supported yet by this server; {instead}", code="unsupported"
    )
