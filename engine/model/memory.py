"""Free memory, what weights take of it, and the size of the page pool."""

import ctypes
import gc
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
import torch
from torch import nn

from ...errors import ConfigurationError
from ...kernels.linear.native import NativeLinear
from ...kvcache.store import LayerShape
from ..weights.blocks import stored_bytes
from ..weights.planes import PlaneLinear
from .fused.compiled import CompiledDecoder
from .fused.experts import CompiledExperts
from .settings import CacheSettings

SHARE: Final = 0.5
"""Default share of the free memory on a CPU, where other programs need some."""
SHARE_OF_CUDA: Final = 0.9
"""Default share of what a step leaves free on CUDA; the rest is for partial results and
fragmentation."""


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


def weights_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights as they are kept; what two modules share counts once."""
    if isinstance(model, CompiledDecoder):
        return model.stored_bytes
    packed = {each.packed for each in model.modules() if isinstance(each, NativeLinear)}
    others = sum(map(stored_bytes, (*model.parameters(), *model.buffers())))
    planes = sum(each.stored_bytes for each in model.modules() if isinstance(each, PlaneLinear))
    experts = sum(e.stored_bytes for e in model.modules() if isinstance(e, CompiledExperts))
    return others + planes + experts + sum(each.stored_bytes for each in packed)


def give_back() -> None:
    """Return freed memory to the system, which the C library (glibc) keeps for itself."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def pool_pages(
    settings: CacheSettings,
    layers: Sequence[LayerShape],
    *,
    dtype: torch.dtype,
    device: torch.device,
    max_running: int,
    max_length_tokens: int,
    step_bytes: int = 0,
    state_bytes: int = 0,
) -> int:
    """Pages of the pool: what `kv_cache_memory` allows; a fraction stops at what can be used.

    `step_bytes`: memory of a step besides weights and cache, if measured; else 0. `state_bytes`: of
    states beside the pages.

    Raises:
        ConfigurationError: not even one page fits.
    """
    per_page = settings.page_size * sum(layer.bytes_per_token(dtype) for layer in layers)
    useful = max_running * -(-max_length_tokens // settings.page_size)
    return pages_of(
        _budget(settings, device),
        free_bytes=free_bytes(device),
        step_bytes=step_bytes,
        page_bytes=per_page,
        useful_pages=useful,
        state_bytes=state_bytes,
    )


def state_slots(
    settings: CacheSettings,
    slot_bytes: int,
    *,
    device: torch.device,
    max_running: int,
    step_bytes: int = 0,
) -> tuple[int, int]:
    """How many sequences can run by their states, at most `max_running`, and slots in all.

    The states take at most half of `kv_cache_memory`. As many slots as sequences are for snapshots,
    where the prefix cache is on; where memory is short, a quarter of all.

    Raises:
        ConfigurationError: not even one sequence fits.
    """
    budget = _budget(settings, device)
    if budget <= 1:
        budget *= max(0, free_bytes(device) - step_bytes)
    fitting = int(budget / 2) // slot_bytes
    if fitting < 1:
        raise ConfigurationError(
            f"the states of one sequence take {slot_bytes} bytes, more than half of the memory for "
            "the cache; raise --kv-cache-memory"
        )
    if not settings.prefix_cache:
        running = min(max_running, fitting)
        return running, running
    slots = min(2 * max_running, fitting)
    return min(max_running, slots - slots // 4), slots


def _budget(settings: CacheSettings, device: torch.device) -> float:
    """Bytes (above 1), or a fraction of what is free (up to 1)."""
    share = SHARE_OF_CUDA if device.type == "cuda" else SHARE
    return share if settings.kv_cache_memory is None else settings.kv_cache_memory


def pages_of(
    budget: float,
    *,
    free_bytes: int,
    step_bytes: int,
    page_bytes: int,
    useful_pages: int,
    state_bytes: int = 0,
) -> int:
    """Pages for a budget: a number of bytes (above 1), or a fraction (up to 1).

    A fraction counts from what a step leaves free, up to `useful_pages`; bytes have no such limit.
    `step_bytes` is 0 where it was not measured. `state_bytes` are part of the budget.

    Raises:
        ConfigurationError: not even one page fits.
    """
    if budget > 1:
        pages = (int(budget) - state_bytes) // page_bytes
    else:
        left = free_bytes - step_bytes
        if left < page_bytes and not step_bytes:
            raise ConfigurationError(
                f"{free_bytes} bytes of memory are free, which leaves no room for a page of "
                f"{page_bytes}; free some, or give the bytes to use with --kv-cache-memory"
            )
        if left < page_bytes:
            raise ConfigurationError(
                f"a step takes {step_bytes} bytes of the {free_bytes} that are free, which leaves "
                f"no room for a page of {page_bytes}; lower --max-batch-tokens, --max-running or "
                f"--max-model-len"
            )
        pages = min((int(left * budget) - state_bytes) // page_bytes, useful_pages)
    if pages < 1:
        raise ConfigurationError(
            f"the KV cache budget holds no page of {page_bytes} bytes; raise --kv-cache-memory"
        )
    return pages
