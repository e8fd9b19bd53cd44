"""What the routes use, made once by the application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from .lifecycle import Lifecycle
    from .metrics import HttpMetrics
    from .offload import Offload
    from .request_body import BodyReader
    from .settings.serve import ServeSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the routes use. `wall_clock` gives Unix time in seconds."""

    settings: ServeSettings
    lifecycle: Lifecycle
    offload: Offload
    bodies: BodyReader
    registry: CollectorRegistry
    http_metrics: HttpMetrics
    wall_clock: Callable[[], float]
