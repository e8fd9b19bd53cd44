"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from .common import check_model, json_response, services_of

if TYPE_CHECKING:
    from ..backend import Backend

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """What is served."""
    engine = services_of(request).lifecycle.engine
    return json_response({"object": "list", "data": [_card(engine)]})


@router.get("/v1/models/{model:path}")
async def get_model(request: Request, model: str) -> Response:
    """One of them."""
    engine = services_of(request).lifecycle.engine
    check_model(engine, model)
    return json_response(_card(engine))


def _card(engine: Backend) -> dict[str, Any]:
    return {
        "id": engine.model.id,
        "object": "model",
        "created": engine.model.created,
        "owned_by": "penstock",
        "max_model_len": engine.model.max_length_tokens,
    }
