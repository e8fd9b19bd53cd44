"""The application: routes, middleware and errors around injected dependencies."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from penstock import __version__

from .conventions.choose import conventions_of
from .errors import error_response
from .extensions import add_extensions, wrong_value
from .lifecycle import Lifecycle
from .log import log_stats
from .metrics import HttpMetrics
from .middleware.access_log import AccessLogMiddleware
from .middleware.allowed_sites import AllowedSitesMiddleware
from .middleware.api_key import ApiKeyMiddleware, ApiKeys
from .middleware.connection_close import ConnectionCloseMiddleware
from .middleware.error_response import ErrorResponseMiddleware
from .middleware.framing import FramingMiddleware
from .middleware.head_as_get import HeadAsGetMiddleware
from .middleware.head_size import HeadSizeMiddleware
from .middleware.request_id import RequestIdMiddleware
from .offload import Offload
from .openapi import describe
from .presets import check_presets
from .request_body import BodyReader
from .routes import adapters, chat, completions, later, meta, model_list, tokens
from .services import Services
from .unknown_route import unknown_route

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request
    from starlette.responses import Response

    from .backend import Backend
    from .settings.serve import ServeSettings

EXPOSED_HEADERS = ["X-Request-Id", "X-Penstock-Ignored", "Retry-After", "Allow", "WWW-Authenticate"]
"""Response headers that web pages of other origins may read."""


def create_app(
    settings: ServeSettings,
    load_engine: Callable[[], Backend],
    *,
    registry: CollectorRegistry,
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
) -> FastAPI:
    """The ASGI application; its lifespan loads the engine with `load_engine` in a thread.

    `clock` gives seconds from any fixed point. `app.state.services` holds the `Services` made here.

    Raises:
        ConfigurationError: the key file cannot be used, or the endpoints of a package.
    """

    def load_checked() -> Backend:
        engine = load_engine()
        check_presets(engine, settings.presets)
        conventions_of(engine.tokenizer, settings.tool_parser, settings.reasoning_parser)
        return engine

    services = Services(
        settings=settings,
        lifecycle=Lifecycle(load_checked),
        offload=Offload(threads=settings.intake_threads, max_pending=settings.max_pending_intake),
        bodies=BodyReader(max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s),
        registry=registry,
        http_metrics=HttpMetrics(registry),
        wall_clock=wall_clock,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        lifecycle = services.lifecycle
        stats: list[asyncio.Task[None]] = []
        lifecycle.on_ready.append(
            lambda engine: stats.append(
                asyncio.create_task(
                    log_stats(engine, interval_s=settings.stats_interval_s, clock=clock)
                )
            )
        )
        lifecycle.start()
        yield
        await lifecycle.drain(0.0)
        for task in stats:
            task.cancel()
        services.offload.close()

    keys = ApiKeys(settings.read_api_keys())
    # FastAPI's interactive pages load scripts from other hosts, so they are off.
    app = FastAPI(
        title="Penstock",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        middleware=_middleware(services, keys, clock),
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.services = services
    app.openapi = cache(partial(describe, app, has_keys=bool(keys)))
    ours = list(app.routes)  # /openapi.json
    for routes in (completions, chat, tokens, model_list, adapters, meta, later):
        app.include_router(routes.router)
        ours += routes.router.routes
    extended = add_extensions(app, services, ours)

    async def answer_unknown_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_response(unknown_route(request, error))

    async def answer_wrong_value(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(wrong_value(error))

    app.add_exception_handler(HTTPException, answer_unknown_route)
    app.add_exception_handler(RequestValidationError, answer_wrong_value)
    if extended:
        app.openapi()  # a package's description is wrong now, or never
    return app


def _middleware(services: Services, keys: ApiKeys, clock: Callable[[], float]) -> list[Middleware]:
    """What happens to every request around its route, from the outermost inwards."""
    settings = services.settings
    # The first four see every response, refusals of the inner ones too.
    stack = [
        Middleware(AccessLogMiddleware, metrics=services.http_metrics, clock=clock),
        Middleware(ConnectionCloseMiddleware, closing=lambda: services.lifecycle.is_ending),
        Middleware(RequestIdMiddleware),
        Middleware(HeadAsGetMiddleware),
        # Outside CORS, which answers preflights itself.
        Middleware(AllowedSitesMiddleware, hosts=settings.hosts, origins=settings.cors_origin),
    ]
    if settings.cors_origin:
        # Outside the error responses, so that web pages can read them.
        stack.append(_cors(settings.cors_origin))
    stack += [
        Middleware(ErrorResponseMiddleware),
        # From here on a refusal is an exception. The cheapest checks come first.
        Middleware(HeadSizeMiddleware, max_bytes=settings.max_header_bytes),
        Middleware(FramingMiddleware),
    ]
    if keys:
        stack.append(Middleware(ApiKeyMiddleware, keys=keys))
    return stack


def _cors(origins: Sequence[str]) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        # The origin check protects; client libraries send many headers of their own.
        allow_methods=["*"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=EXPOSED_HEADERS,
    )
