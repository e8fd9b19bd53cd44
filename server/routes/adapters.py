"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ...engine.adapters.served import folder_below
from ..errors import HttpError
from ..openapi import documented
from ..presets import check_adapter_name
from ..protocol.adapter_bodies import LoadAdapterBody, UnloadAdapterBody
from ..protocol.parse import parse_body
from .common import ignored_headers, services_of

if TYPE_CHECKING:
    from pathlib import Path

    from ..services import Services

router = APIRouter()


@router.post(
    "/v1/load_lora_adapter",
    response_class=PlainTextResponse,
    **documented(LoadAdapterBody, operator=True),
)
async def load_adapter(request: Request) -> Response:
    """Load an adapter from a folder below `--adapter-folder`."""
    services = services_of(request)
    allowed, engine = _allowed(services), services.lifecycle.engine
    async with services.bodies.read(request) as raw:
        body, ignored = await services.offload.run(parse_body, LoadAdapterBody, raw)
        check_adapter_name(engine, body.lora_name, services.settings.presets)
        folder = await services.offload.run(folder_below, allowed, body.lora_path)
        await engine.load_adapter(
            body.lora_name,
            folder,
            created=int(services.wall_clock()),
            replace=body.load_inplace,
        )
    return PlainTextResponse(
        f"the adapter {body.lora_name} is loaded", headers=ignored_headers(request, ignored)
    )


@router.post(
    "/v1/unload_lora_adapter",
    response_class=PlainTextResponse,
    **documented(UnloadAdapterBody, operator=True),
)
async def unload_adapter(request: Request) -> Response:
    """Serve an adapter no more; requests that run keep it until they end."""
    services = services_of(request)
    _allowed(services)
    engine = services.lifecycle.engine
    async with services.bodies.read(request) as raw:
        body, ignored = await services.offload.run(parse_body, UnloadAdapterBody, raw)
    engine.unload_adapter(body.lora_name)
    return PlainTextResponse(
        f"the adapter {body.lora_name} is unloaded", headers=ignored_headers(request, ignored)
    )


def _allowed(services: Services) -> Path:
    """The folder that the operator allows.

    Raises:
        HttpError: there is none.
    """
    folder = services.settings.adapter_folder
    if folder is None:
        raise HttpError(
            403,
            "adapters cannot be loaded or unloaded while this server runs; its operator may allow "
            "it with --adapter-folder",
            code="not_allowed",
        )
    return folder
