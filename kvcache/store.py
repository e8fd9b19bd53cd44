"""The tensors that hold keys and values, one pair a layer.

logical   [pages, Hkv, page, D]      what kernels see; a (page, head) tile is contiguous
stored    [Hkv, pages, page, D]      consecutive pages of a head are one run of memory

In 8 bits (`kernels/quantise.py`) each pair has a second pair with its scales, of the same shape
but D = 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from ..kernels.quantise import LARGEST, SCALE_DTYPE, as_bits, dequantise, quantise
from .table import PageCopy

Stored = tuple[Tensor, ...]
"""Keys and values of some tokens of one layer, as stored: keys, values, and in 8 bits the scales of
both. All are `[..., D]`, equal in shape but for D."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """Heads and head sizes of one attention layer; keys and values may differ in size.

    `window`: tokens that its sliding window holds; None: it has none.
    """

    kv_heads: int
    key_size: int
    value_size: int
    window: int | None = None

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes that one token's key and value take in this layer, scales included."""
        scales = 2 * SCALE_DTYPE.itemsize if dtype in LARGEST else 0
        return self.kv_heads * ((self.key_size + self.value_size) * dtype.itemsize + scales)


class Scales(TypedDict, total=False):
    """Keyword arguments of kernels for a layer in 8 bits, `[pages, Hkv, page, 1]`; else empty."""

    k_scales: Tensor
    v_scales: Tensor


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
        self.dtype = dtype
        self.windows = [layer.window for layer in layers]

        def new(heads: int, size: int, dtype: torch.dtype = dtype) -> Tensor:
            return _new_cache(heads, pages, page_size, size, dtype, device)

        self.keys = [new(layer.kv_heads, layer.key_size) for layer in layers]
        self.values = [new(layer.kv_heads, layer.value_size) for layer in layers]
        self.scales = [
            Scales(
                k_scales=new(layer.kv_heads, 1, SCALE_DTYPE),
                v_scales=new(layer.kv_heads, 1, SCALE_DTYPE),
            )
            if dtype in LARGEST
            else Scales()
            for layer in layers
        ]
        self.bytes = sum(t.numel() * t.element_size() for t in self._everything())

    def encode(self, k: Tensor, v: Tensor) -> Stored:
        """Convert keys and values `[..., D]` to what is stored."""
        if self.dtype not in LARGEST:
            return k.to(self.dtype), v.to(self.dtype)
        keys, key_scales = quantise(k, self.dtype)
        values, value_scales = quantise(v, self.dtype)
        return keys, values, key_scales, value_scales

    def decode(self, stored: Stored, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Convert what is stored to keys and values `[..., D]` in `dtype`."""
        keys, values, *scales = stored
        of_keys, of_values = scales or (None, None)
        return dequantise(keys, of_keys, dtype), dequantise(values, of_values, dtype)

    def finite(self, layer: int, slots_R: Tensor) -> Tensor:
        """Whether each token's key and value in one layer are finite: bool `[R]`.

        In 8 bits the scales tell.
        """
        found = torch.ones(slots_R.shape[0], dtype=torch.bool, device=slots_R.device)
        of_layer = self._of(layer)
        for cache in of_layer[2:] or of_layer:
            found &= _flat(cache).index_select(1, slots_R).isfinite().all(dim=2).all(dim=0)
        return found

    def copy_pages(self, copies: Sequence[PageCopy]) -> None:
        """Copy whole pages in every layer (copy-on-write)."""
        source = torch.tensor([copy.source for copy in copies], device=self.keys[0].device)
        target = torch.tensor([copy.target for copy in copies], device=self.keys[0].device)
        for cache in self._everything():
            heads = as_bits(cache).transpose(0, 1)
            heads.index_copy_(1, target, heads.index_select(1, source))

    def move_slots(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy single tokens in every layer; slot = page x page_size + offset."""
        source = torch.tensor(sources, device=self.keys[0].device)
        target = torch.tensor(targets, device=self.keys[0].device)
        for cache in self._everything():
            flat = _flat(cache)
            flat.index_copy_(1, target, flat.index_select(1, source))

    def write_slots(self, layer: int, slots_KR: Tensor, stored: Stored) -> None:
        """Write `[K, R, D]` of one layer to slots that differ from head to head."""
        for cache, rows in zip(self._of(layer), stored, strict=True):
            index = slots_KR[..., None].expand(-1, -1, rows.shape[2])
            _flat(cache).scatter_(1, index, as_bits(rows))

    def read_slots(self, layer: int, slots_KR: Tensor) -> Stored:
        """Read `[K, R, D]` of one layer from slots that differ from head to head."""
        return tuple(
            _flat(cache)
            .gather(1, slots_KR[..., None].expand(-1, -1, cache.shape[3]))
            .view(cache.dtype)
            for cache in self._of(layer)
        )

    def read_keys(self, layer: int, slots_R: Tensor) -> Tensor:
        """The keys of one layer in slots that are the same in every head: float32 `[K, R, D]`."""
        cache, scales = self.keys[layer], self.scales[layer].get("k_scales")
        keys = _flat(cache).index_select(1, slots_R).view(cache.dtype)
        of_keys = None if scales is None else _flat(scales).index_select(1, slots_R)
        return dequantise(keys, of_keys, torch.float32)

    def _of(self, layer: int) -> Stored:
        scales = self.scales[layer]
        if "k_scales" in scales and "v_scales" in scales:
            return self.keys[layer], self.values[layer], scales["k_scales"], scales["v_scales"]
        return self.keys[layer], self.values[layer]

    def _everything(self) -> list[Tensor]:
        return [cache for layer in range(len(self.keys)) for cache in self._of(layer)]


def _new_cache(
    heads: int, pages: int, page_size: int, size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    # Not initialised: a slot is written before it is read, and untouched memory costs nothing.
    stored = torch.empty(heads, pages, page_size, size, dtype=dtype, device=device)
    return stored.transpose(0, 1)


def _flat(cache: Tensor) -> Tensor:
    """View of a cache as `[Hkv, slots, D]`; 8-bit values as bits."""
    heads = as_bits(cache).transpose(0, 1)
    return heads.view(heads.shape[0], -1, heads.shape[3])
