"""The application: routes, middleware and errors around injected dependencies."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from penstock import __version__
from penstock.errors import PenstockError

from .auth import ApiKeys, AuthMiddleware
from .context import ContextMiddleware
from .errors import error_response
from .lifecycle import Lifecycle
from .log import log_stats
from .metrics import HttpMetrics
from .offload import Offload
from .presets import check_presets
from .request_body import BodyReader
from .routes import chat, completions, later, meta, model_list, tokens
from .services import Services

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request
    from starlette.responses import Response

    from .backend import Backend
    from .settings import ServeSettings


def create_app(
    settings: ServeSettings,
    load_engine: Callable[[], Backend],
    *,
    registry: CollectorRegistry,
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
) -> FastAPI:
    """The ASGI application; its lifespan loads the engine with `load_engine` in a thread.

    `clock` gives seconds from any fixed point. `app.state.services` holds what was made here.

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

    # The interactive pages of FastAPI load scripts from elsewhere, hence none.
    app = FastAPI(
        title="Penstock",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.services = services
    for routes in (completions, chat, tokens, model_list, meta, later):
        app.include_router(routes.router)

    async def answer_error(_: Request, error: Exception) -> Response:
        return error_response(error)

    app.add_exception_handler(PenstockError, answer_error)
    app.add_exception_handler(HTTPException, answer_error)

    keys = ApiKeys(settings.read_api_keys())
    # The last one added is the outermost.
    if keys:
        app.add_middleware(AuthMiddleware, keys=keys)
    if settings.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origin,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "X-Penstock-Ignored", "Retry-After"],
        )
    app.add_middleware(
        ContextMiddleware,
        metrics=HttpMetrics(registry),
        clock=clock,
        max_head_bytes=settings.max_header_bytes,
    )
    return app
