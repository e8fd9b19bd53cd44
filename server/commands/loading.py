"""Loading the engine for a command; torch is imported by the call, not with this module."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..evaluators import external

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prometheus_client import CollectorRegistry

    from ...engine.async_engine import AsyncEngine
    from ...engine.config import EngineConfig
    from ..evaluators import ExternalEvaluator


def only_on_a_terminal() -> None:
    """Let transformers draw its progress bars where standard error is a terminal, nowhere else."""
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()


def load_engine(
    config: EngineConfig,
    *,
    registry: CollectorRegistry,
    clock: Callable[[], float],
    evaluators: Mapping[str, ExternalEvaluator] | None = None,
) -> AsyncEngine:
    """The engine; blocks for seconds, the first of which import torch.

    `evaluators`: services that searches may name.

    Raises:
        ConfigurationError: settings or model cannot be served.
    """
    from ...engine.async_engine import AsyncEngine

    only_on_a_terminal()
    return AsyncEngine.load(
        config,
        registry=registry,
        clock=clock,
        evaluators=external(evaluators or {}),
    )
