"""GET /health, /metrics, /version and /v1/decoding: about the server itself."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from penstock import __version__

from ...decoding.base import SLOTS
from ...engine.requests.compatibility import Combination, broken_rule
from ..openapi import documented
from ..protocol.answers import Health, MethodList, Version
from .common import json_response, services_of

if TYPE_CHECKING:
    from penstock.registry import Registry

    from ...decoding.base import DecodingMethod, Slot
    from ...kvcache.base import CachePolicy

router = APIRouter()


@router.get("/health", **documented(answer=Health))
async def health(request: Request) -> Response:
    """Whether requests can be served: 200, or 503 with the reason."""
    _ = services_of(request).lifecycle.engine
    return json_response({"status": "ok"})


@router.get("/metrics", response_class=PlainTextResponse, **documented(engine=False))
async def metrics(request: Request) -> Response:
    """Everything in the registry, in Prometheus' text format."""
    body = generate_latest(services_of(request).registry)
    return Response(body, headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/version", **documented(answer=Version, engine=False))
async def version() -> Response:
    """The version of Penstock."""
    return json_response({"version": __version__})


@router.get("/v1/decoding", **documented(answer=MethodList))
async def methods(request: Request) -> Response:
    """The methods that `decoding` and `kv_cache` may name, with the schemas of their parameters."""
    services = services_of(request)
    input_processor = services.lifecycle.engine.input_processor
    return json_response(
        {
            "object": "list",
            "slots": SLOTS,
            "decoding": _described(input_processor.decoding),
            "kv_cache": _described(input_processor.kv_cache),
            "combinations": _combinations(input_processor.decoding, input_processor.kv_cache),
            "presets": {
                name: preset.model_dump(exclude_none=True)
                for name, preset in services.settings.presets.items()
            },
        }
    )


def _combinations(
    decoding: Registry[DecodingMethod[Any]], kv_cache: Registry[CachePolicy[Any]]
) -> list[dict[str, list[str]]]:
    """Every set of methods that one request may name: at most one a slot, and a cache policy."""
    by_slot: dict[Slot, list[DecodingMethod[Any]]] = {}
    for method in decoding.methods.values():
        by_slot.setdefault(method.slot, []).append(method)
    return [
        {"decoding": [method.name for method in chosen if method], "kv_cache": [policy.name]}
        for chosen in product(*([None, *methods] for methods in by_slot.values()))
        for policy in kv_cache.methods.values()
        if broken_rule(Combination.of(filter(None, chosen), policy)) is None
    ]


def _described(
    registry: Registry[DecodingMethod[Any]] | Registry[CachePolicy[Any]],
) -> list[dict[str, Any]]:
    return [
        {
            "name": method.name,
            "slot": method.slot,
            "summary": method.summary,
            "parameters": method.parameters.model_json_schema(),
        }
        for method in registry.methods.values()
    ]
