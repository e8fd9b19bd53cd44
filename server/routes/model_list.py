"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..openapi import documented
from ..presets import served_model, served_models
from ..protocol.answers import ModelCard, ModelList
from .common import json_response, services_of

if TYPE_CHECKING:
    from ..backend import Backend
    from ..presets import Served

router = APIRouter()


@router.get("/v1/models", **documented(answer=ModelList))
async def list_models(request: Request) -> Response:
    """What is served: the model, its adapters, and each preset of them under a name of its own."""
    services = services_of(request)
    engine = services.lifecycle.engine
    cards = [_card(engine, served) for served in served_models(engine, services.settings.presets)]
    return json_response({"object": "list", "data": cards})


@router.get("/v1/models/{model:path}", **documented(answer=ModelCard, model_in_path=True))
async def get_model(request: Request, model: str) -> Response:
    """One of them."""
    services = services_of(request)
    engine = services.lifecycle.engine
    return json_response(_card(engine, served_model(engine, model, services.settings.presets)))


def _card(engine: Backend, served: Served) -> dict[str, Any]:
    card = {
        "id": served.id,
        "object": "model",
        "created": (served.adapter or engine.model).created,
        "owned_by": "penstock",
        "max_model_len": engine.model.max_length_tokens,
        "input_modalities": ["text", "image"]
        if engine.input_processor.pictures.taken
        else ["text"],
    }
    if served.id != engine.model.id:
        card |= {"parent": engine.model.id, **served.preset.model_dump(exclude_none=True)}
    return card
