"""The application: routes, middleware and errors around injected dependencies."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from penstock import __version__

from .auth import ApiKeys, AuthMiddleware
from .context import ContextMiddleware
from .errors import error_response
from .failures import FailureMiddleware
from .head import HeadMiddleware
from .lifecycle import Lifecycle
from .log import log_stats
from .metrics import HttpMetrics
from .offload import Offload
from .openapi import describe
from .presets import check_presets
from .request_body import BodyReader
from .routes import chat, completions, later, meta, model_list, tokens
from .services import Services
from .site import SiteMiddleware
from .unknown_route import unknown_route

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

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
        ConfigurationError: the key file cannot be used.
    """

    def load_checked() -> Backend:
        engine = load_engine()
        check_presets(engine, settings.presets)
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

    # FastAPI's interactive pages load scripts from other hosts, so they are off.
    app = FastAPI(
        title="Penstock",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.services = services
    for routes in (completions, chat, tokens, model_list, meta, later):
        app.include_router(routes.router)

    async def answer_unknown_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "only the router raises these"
        return error_response(unknown_route(request, error))

    app.add_exception_handler(HTTPException, answer_unknown_route)

    keys = ApiKeys(settings.read_api_keys())
    app.openapi = cache(partial(describe, app, has_keys=bool(keys)))
    # The middleware added last is the outermost.
    if keys:
        app.add_middleware(AuthMiddleware, keys=keys)
    app.add_middleware(HeadMiddleware, max_bytes=settings.max_header_bytes)
    app.add_middleware(FailureMiddleware)
    if settings.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origin,
            # The origin check protects; client libraries send many headers of their own.
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(SiteMiddleware, hosts=settings.hosts, origins=settings.cors_origin)
    app.add_middleware(
        ContextMiddleware,
        metrics=services.http_metrics,
        clock=clock,
        closing=lambda: services.lifecycle.is_ending,
    )
    return app
