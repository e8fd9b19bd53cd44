"""What a kernel's benchmark measures: sizes, and one launch with its limit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from penstock.kvcache.store import LayerShape

Launch = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes. Lists are of (sequences, keys of each): more keys and values than any cache holds."""

    heads: int = 32
    kv_heads: int = 8
    size: int = 128
    page: int = 16
    dtype: torch.dtype = torch.bfloat16
    stored: tuple[torch.dtype, ...] = (torch.bfloat16, torch.int8, torch.float8_e4m3fn)
    decode: tuple[tuple[int, int], ...] = ((1, 32768), (16, 4096), (64, 2048))
    windows: tuple[tuple[int, int], ...] = ((1, 32768), (16, 4096))
    window_rows: int = 8
    prompts: tuple[int, ...] = (2048, 8192)
    written_rows: tuple[int, ...] = (64, 8192)
    contexts: tuple[int, int] = (64, 4096)
    """Of `evict`: how many, and slots of each."""
    pool_tokens: int = 131072
    """Of `kv_write`."""
    feed_forward: int = 14336
    multiplied_rows: tuple[int, ...] = (1, 64, 4096)
    matrix_bound_rows: int = 512
    """From so many rows on a product is bound by what matrix units do, not by reading weights."""
    copied_bytes: int = 2**29
    matrix: int = 8192

    @property
    def layer(self) -> LayerShape:
        """Heads and sizes as the cache has them."""
        return LayerShape(kv_heads=self.kv_heads, key_size=self.size, value_size=self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One launch. `rows`, `keys`: of each sequence. `limit`: what bounds it at best.

    `prepare`: makes its tensors on a device and returns the launch. `beside`: the kernel whose time
    in the same shape, with keys and values in the model's dtype, is its yardstick.
    """

    kernel: str
    shape: str
    dtype: torch.dtype
    sequences: int
    rows: int
    keys: int
    bytes_moved: int
    operations: int
    limit: Literal["copy", "matrix"]
    prepare: Callable[[torch.device], Launch]
    beside: str | None = None
