"""`penstock serve`: one process, from settings to its last line.

uvicorn runs the lifespan's end after all connections have closed, which open streams would delay
for ever. So the order is ours: refuse new requests, let running ones finish up to the timeout,
end the rest with an error event, stop listening, close connections, exit 0. New connections are
answered with 503 to the last: a refused one tells a load balancer nothing.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from functools import partial
from typing import TYPE_CHECKING, TypeGuard

import uvicorn
from prometheus_client import CollectorRegistry

from penstock.errors import ConfigurationError

from ..app import create_app
from ..connection import Connection, connection_class
from ..log import configure_logging
from ..middleware.access_log import record_refusal
from .loading import load_engine

if TYPE_CHECKING:
    from types import FrameType

    from fastapi import FastAPI

    from ..backend import Backend
    from ..lifecycle import Lifecycle
    from ..services import Services
    from ..settings.network import NetworkSettings
    from ..settings.serve import ServeSettings

logger = logging.getLogger(__name__)

_BACKLOG = 2048
_FLUSH_S = 5
"""Time for the last bytes of ended requests to leave."""
_KEEP_ALIVE_S = 65
"""Longer than the usual 60 s of load balancers, so that they close idle connections first."""


class Server(uvicorn.Server):
    """uvicorn with the shutdown described above. A second signal does not wait for requests."""

    def __init__(
        self, config: uvicorn.Config, lifecycle: Lifecycle, *, drain_timeout_s: float
    ) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain_timeout_s = drain_timeout_s
        self._hurry = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; exit by ourselves where the model cannot be loaded."""
        self._loop = asyncio.get_running_loop()
        self._lifecycle.on_failed.append(self._stop)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in the order described above."""
        live = len(self.server_state.tasks)
        if live:
            logger.info("finishing %d requests, at most %g s", live, self._drain_timeout_s)
        drained = asyncio.create_task(self._lifecycle.drain(self._drain_timeout_s))
        hurried = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({drained, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not drained.done():
            drained.cancel()
            await asyncio.gather(drained, return_exceptions=True)
            await self._lifecycle.drain(0.0)
        await self._flush()
        await super().shutdown(sockets)

    async def _flush(self) -> None:
        """Wait for the last bytes to leave; cut off the callers who do not take them."""
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_FLUSH_S)
        answering = [c for c in self.server_state.connections if _is_answering(c)]
        if answering:
            logger.warning("%d callers did not take their answers in time", len(answering))
        for connection in answering:
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end at the first signal; hurry at the second."""
        del frame
        # Not remembered for uvicorn to raise again: a wanted end is exit status 0.
        again, loop = self.should_exit, self._loop
        self._stop()
        if loop is None:
            return
        # Only what cannot fail stands in a signal handler: it may have interrupted a write to the
        # log, which cannot be entered twice.
        loop.call_soon_threadsafe(logger.info, "received %s", signal.Signals(sig).name)
        if again:
            loop.call_soon_threadsafe(self._hurry.set)

    def _stop(self) -> None:
        self.should_exit = True


def _is_answering(connection: object) -> TypeGuard[Connection]:
    return isinstance(connection, Connection) and connection.is_answering


def make_server(app: FastAPI, settings: ServeSettings) -> Server:
    """The server of an application from `create_app`."""
    services: Services = app.state.services
    http = connection_class(
        head_timeout_s=settings.head_timeout_s,
        max_requests=settings.max_connection_requests,
        refused=partial(record_refusal, services.http_metrics),
    )
    config = uvicorn.Config(
        app,
        http=http,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=settings.max_header_bytes,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_FLUSH_S,
    )
    return Server(config, services.lifecycle, drain_timeout_s=settings.shutdown_timeout_s)


def run_serve(settings: ServeSettings) -> int:
    """Serve until a signal; returns the process's exit status.

    Raises:
        ConfigurationError: a setting is wrong, or the address cannot be used.
    """
    configure_logging(settings.log_level, access_log=settings.access_log)
    registry = CollectorRegistry()

    def load() -> Backend:
        return load_engine(
            settings.engine_config,
            registry=registry,
            clock=time.monotonic,
            evaluators=settings.evaluators,
        )

    app = create_app(settings, load, registry=registry, clock=time.monotonic, wall_clock=time.time)
    lifecycle: Lifecycle = app.state.services.lifecycle
    listener = bind(settings)
    if not settings.is_loopback and not settings.read_api_keys():
        logger.warning(
            "listening on %s without an API key: whoever reaches this address can use the model; "
            "set --api-key, or --host 127.0.0.1",
            settings.host,
        )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    logger.info("listening on http://%s:%d", host, listener.getsockname()[1])
    lifecycle.on_ready.append(_ready)
    server = make_server(app, settings)
    server.run(sockets=[listener])
    logger.info("stopped")
    if lifecycle.is_loading:
        # The loader cannot be interrupted, and torch may crash when Python ends around it.
        logging.shutdown()
        os._exit(lifecycle.exit_code)
    return lifecycle.exit_code


def _ready(engine: Backend) -> None:
    # What is loaded stays: the collector need not walk torch again and again between tokens.
    gc.collect()
    gc.freeze()
    logger.info("ready: serving %s", engine.model.id)


def bind(settings: NetworkSettings) -> socket.socket:
    """A socket that listens where the settings say.

    Raises:
        ConfigurationError: the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)  # from here on, callers wait instead of being turned away
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; choose "
            "another --host or --port"
        ) from error
    return listener
