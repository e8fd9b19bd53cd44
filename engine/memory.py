"""How much memory there is, and how large the page pool may be."""

from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from ..errors import ConfigurationError
from ..kvcache.store import LayerShape
from .config import EngineConfig


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device now; a container's own limit counts."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    free = psutil.virtual_memory().available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
    except OSError:
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - int(used)))


def pool_pages(
    config: EngineConfig,
    layers: Sequence[LayerShape],
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_length_tokens: int,
) -> int:
    """Pages of the pool: what `kv_cache_memory` allows, but not more than could ever be used.

    A budget in bytes is taken as it is; a fraction is capped at every running sequence having
    the full context.

    Raises:
        ConfigurationError: not even one page fits.
    """
    per_page = config.page_size * sum(layer.bytes_per_token(dtype) for layer in layers)
    if config.kv_cache_memory > 1:
        pages = int(config.kv_cache_memory) // per_page
    else:
        useful = config.max_running * -(-max_length_tokens // config.page_size)
        pages = min(int(free_bytes(device) * config.kv_cache_memory) // per_page, useful)
    if pages < 1:
        raise ConfigurationError(
            f"the KV cache budget holds no page of {per_page} bytes; raise --kv-cache-memory"
        )
    return pages
