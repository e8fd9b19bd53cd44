"""Logging of the process, and the line with throughput that appears while there is work."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .backend import Backend, Stats

logger = logging.getLogger(__name__)

_SHOWN_BYTES = 200
_NOISY = ("uvicorn", "httpx", "httpcore", "asyncio", "filelock", "urllib3")


def configure_logging(level: str, *, access_log: bool = True) -> None:
    """One plain line a record on standard error, the same on a terminal and in a file."""
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        force=True,
    )
    if level != "debug":
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("penstock.access").disabled = not access_log


def stats_line(before: Stats, now: Stats, elapsed_s: float) -> str | None:
    """What happened between two snapshots; None where nothing did."""
    prompt = now.prompt_tokens - before.prompt_tokens
    generated = now.generation_tokens - before.generation_tokens
    if not (prompt or generated or now.running or now.waiting):
        return None
    line = (
        f"prompt {prompt / elapsed_s:.1f} tokens/s, generation {generated / elapsed_s:.1f} "
        f"tokens/s, running {now.running}, waiting {now.waiting}, "
        f"KV cache {100 * now.pages_in_use / max(1, now.pages_total):.1f} %"
    )
    queried = now.prefix_queried_tokens - before.prefix_queried_tokens
    if queried:
        hits = now.prefix_hit_tokens - before.prefix_hit_tokens
        line += f", prefix cache hits {100 * hits / queried:.1f} %"
    return line


def shown(sent: bytes) -> str:
    """Untrusted bytes as text for logs and error messages: escaped and cut."""
    text = sent[:_SHOWN_BYTES].decode("latin-1").encode("unicode_escape").decode()
    return text + "..." if len(sent) > _SHOWN_BYTES else text


async def log_stats(engine: Backend, *, interval_s: float, clock: Callable[[], float]) -> None:
    """Log a line every `interval_s` seconds while there is work, until cancelled."""
    before, before_s = engine.stats(), clock()
    while True:
        await asyncio.sleep(interval_s)
        now, now_s = engine.stats(), clock()
        line = stats_line(before, now, max(now_s - before_s, 1e-9))
        if line is not None:
            logger.info(line)
        before, before_s = now, now_s
