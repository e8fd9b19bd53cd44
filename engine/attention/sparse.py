"""Sparse prefill: attention of prompts under a `prefill` method; rows see part of the keys."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...kernels.backend import Kernels
from ...kernels.batch import PagedBatch
from ...kernels.quantise import read
from ...kernels.sparse_prefill.lists import pairs
from ...kvcache.store import KVStore
from ..state.sparse_prefill import SparsePrefillState
from .write import written


@dataclass(slots=True, kw_only=True)
class SparseRows:
    """Rows of one context from position `begin` on, some of which see only part of the keys.

    `pages`: of all the context's keys. `slots`: int64, where the rows' own keys go.
    """

    rows: slice
    sparse_prefill: SparsePrefillState
    begin: int
    pages: list[int]
    slots: Tensor
    page_size: int
    kernels: Kernels
    _parts: list[tuple[slice, PagedBatch, bool]] = field(init=False)

    def __post_init__(self) -> None:
        end = self.begin + self.rows.stop - self.rows.start
        sparse_prefill = self.sparse_prefill
        borders = sorted(
            {self.begin, end}
            | {at for at in (sparse_prefill.first, sparse_prefill.until) if self.begin < at < end}
        )
        self._parts = [
            (
                slice(low - self.begin, high - self.begin),
                self._batch(low, high),
                sparse_prefill.covers(low, 1),
            )
            for low, high in pairwise(borders)
        ]
        sparse_prefill.rows += sum(of.stop - of.start for of, _, sparse in self._parts if sparse)

    def attend(
        self,
        layer: int,
        q_RHD: Tensor,
        k_RKD: Tensor,
        v_RKD: Tensor,
        store: KVStore,
        *,
        window: int | None,
        scale: float,
        **how: Any,
    ) -> Tensor:
        """Write all keys and values; then attend, part by part of the rows.

        In a layer with a sliding window of the model's own, all rows see every key of the window.
        """
        caches, scales = written(self.kernels, store, layer, k_RKD, v_RKD, self.slots)
        how.update(window=window, scale=scale)
        outs = [
            self._sparse(layer, q_RHD[of], store, batch, scale)
            if sparse and window is None
            else self.kernels.paged_attention(q_RHD[of], *caches, batch, **how, **scales)
            for of, batch, sparse in self._parts
        ]
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _sparse(
        self, layer: int, q_RHD: Tensor, store: KVStore, batch: PagedBatch, scale: float
    ) -> Tensor:
        caches, scales = (store.keys[layer], store.values[layer]), store.scales[layer]
        (span,) = batch.spans
        k_KLD = read(span, caches[0], scales.get("k_scales"), q_RHD.dtype)
        rows, heads, keys = q_RHD.shape[0], q_RHD.shape[1], k_KLD.shape[1]
        causal = heads * _triangle(keys - rows, keys)
        self.sparse_prefill.causal += causal
        labeller = self.sparse_prefill.labeller(layer, k_KLD)
        if labeller is None:
            self.sparse_prefill.seen = self.sparse_prefill.seen + causal
            return self.kernels.paged_attention(q_RHD, *caches, batch, scale=scale, **scales)
        labels = labeller(q_RHD, k_KLD)
        near = causal - heads * _triangle(max(0, keys - rows - labels.recent), keys - labels.recent)
        self.sparse_prefill.seen = self.sparse_prefill.seen + (pairs(labels) + near)
        return self.kernels.sparse_prefill(q_RHD, *caches, batch, labels, scale=scale, **scales)

    def _batch(self, begin: int, end: int) -> PagedBatch:
        return PagedBatch(
            page_size=self.page_size,
            query_starts=[0, end - begin],
            kv_lengths=[end],
            tables=[self.pages],
            slots=self.slots[begin - self.begin : end - self.begin],
        )


def _triangle(begin: int, end: int) -> int:
    """How many keys causal rows at positions `[begin, end)` see together."""
    end = max(begin, end)
    return (end * (end + 1) - begin * (begin + 1)) // 2
