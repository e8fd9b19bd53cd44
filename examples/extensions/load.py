"""GET /v1/load as an endpoint of Penstock: how busy a server is, for a router before several."""

from fastapi import APIRouter
from pydantic import BaseModel

from penstock.server.services import Services


class Load(BaseModel):
    """Sequences that run and that wait, and the share of the KV cache that is in use."""

    running: int
    waiting: int
    kv_cache: float


def endpoints(services: Services) -> APIRouter:
    """The routes; called once, when the application is made."""
    router = APIRouter()

    @router.get("/v1/load")
    async def load() -> Load:  # pyright: ignore[reportUnusedFunction]
        """How busy the engine is; 503 while there is none."""
        stats = services.lifecycle.engine.stats()
        return Load(
            running=stats.running,
            waiting=stats.waiting,
            kv_cache=stats.pages_in_use / stats.pages_total,
        )

    return router
