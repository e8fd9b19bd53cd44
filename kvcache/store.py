"""The tensors that hold keys and values, one pair a layer.

logical   [pages, Hkv, page, D]      what kernels see; a (page, head) tile is contiguous
stored    [Hkv, pages, page, D]      consecutive pages of a head are one run of memory
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .table import PageCopy


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """Heads and head sizes of one attention layer; keys and values may differ in size."""

    kv_heads: int
    key_size: int
    value_size: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes that one token's key and value take in this layer."""
        return self.kv_heads * (self.key_size + self.value_size) * dtype.itemsize


class KVStore:
    """Keys and values of all pages. Memory is reserved at once and touched when first written."""

    def __init__(
        self,
        layers: Sequence[LayerShape],
        *,
        pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.page_size = page_size
        self.pages = pages
        self.keys = [
            _new_cache(layer.kv_heads, pages, page_size, layer.key_size, dtype, device)
            for layer in layers
        ]
        self.values = [
            _new_cache(layer.kv_heads, pages, page_size, layer.value_size, dtype, device)
            for layer in layers
        ]
        self.bytes = sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def copy_pages(self, copies: Sequence[PageCopy]) -> None:
        """Copy whole pages in every layer (copy-on-write)."""
        source = torch.tensor([copy.source for copy in copies], device=self.keys[0].device)
        target = torch.tensor([copy.target for copy in copies], device=self.keys[0].device)
        for cache in (*self.keys, *self.values):
            heads = cache.transpose(0, 1)
            heads.index_copy_(1, target, heads.index_select(1, source))

    def move_slots(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy single tokens in every layer; slot = page x page_size + offset."""
        source = torch.tensor(sources, device=self.keys[0].device)
        target = torch.tensor(targets, device=self.keys[0].device)
        for cache in (*self.keys, *self.values):
            heads = cache.transpose(0, 1)
            flat = heads.view(heads.shape[0], -1, heads.shape[3])
            flat.index_copy_(1, target, flat.index_select(1, source))

    def write_slots(self, layer: int, slots_KR: Tensor, k_KRD: Tensor, v_KRD: Tensor) -> None:
        """Write keys and values of one layer to slots that differ from head to head."""
        for cache, rows in ((self.keys[layer], k_KRD), (self.values[layer], v_KRD)):
            heads = cache.transpose(0, 1)
            flat = heads.view(heads.shape[0], -1, heads.shape[3])
            index = slots_KR[..., None].expand(-1, -1, rows.shape[2])
            flat.scatter_(1, index, rows.to(flat.dtype))

    def read_slots(self, layer: int, slots_KR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[K, R, D]` of one layer, from slots that differ from head to head."""
        found: list[Tensor] = []
        for cache in (self.keys[layer], self.values[layer]):
            heads = cache.transpose(0, 1)
            flat = heads.view(heads.shape[0], -1, heads.shape[3])
            found.append(flat.gather(1, slots_KR[..., None].expand(-1, -1, flat.shape[2])))
        return found[0], found[1]


def _new_cache(
    heads: int, pages: int, page_size: int, size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    # Left as it comes: a slot is written before it is read, and memory not touched costs nothing.
    stored = torch.empty(heads, pages, page_size, size, dtype=dtype, device=device)
    return stored.transpose(0, 1)
