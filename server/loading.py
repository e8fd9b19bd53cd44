"""Loading the engine for a command; torch is imported by the call, not with this module."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from ..engine.async_engine import AsyncEngine
    from ..engine.config import EngineConfig


def load_engine(
    config: EngineConfig, *, registry: CollectorRegistry, clock: Callable[[], float]
) -> AsyncEngine:
    """The engine; blocks for seconds, the first of which import torch.

    Raises:
        ConfigurationError: settings or model cannot be served.
    """
    from transformers.utils import logging as transformers_logging

    from ..engine.async_engine import AsyncEngine

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    return AsyncEngine.load(config, registry=registry, clock=clock)
