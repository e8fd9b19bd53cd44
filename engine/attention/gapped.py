"""Attention of rows whose sliding windows have a gap, because a thought was dropped.

Paged kernels take the keys of a context to be those of consecutive tokens. With a gap that is wrong
only in layers with a sliding window, and there only until the window has left the gap behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.backend import Kernels
from ...kernels.batch import PagedBatch, Span
from ...kernels.quantise import read
from ...kernels.scored_attention.reference import scored_attention
from ...kvcache.store import KVStore
from ..state.sequence import Context
from .write import written


@dataclass(slots=True, kw_only=True)
class GappedRows:
    """Rows of one context; `batch`: these rows'. `positions`: see `key_positions`."""

    rows: slice
    batch: PagedBatch
    positions: Tensor
    kernels: Kernels

    def attend(
        self,
        layer: int,
        q_RHD: Tensor,
        k_RKD: Tensor,
        v_RKD: Tensor,
        store: KVStore,
        *,
        window: int | None,
        **how: Any,
    ) -> Tensor:
        """Write keys and values, then attend; in torch in layers with a sliding window."""
        caches, scales = written(self.kernels, store, layer, k_RKD, v_RKD, self.batch.slots)
        if window is None:
            return self.kernels.paged_attention(q_RHD, *caches, self.batch, **how, **scales)
        (span,) = self.batch.spans
        return attend_in_window(q_RHD, span, store, layer, self.positions, window, **how)[0]


def key_positions(context: Context, depths: Sequence[int], device: torch.device) -> Tensor:
    """Positions of the tokens whose keys a context has, int64 `[keys]`.

    `depths`: how many tokens each new row is behind the first of them; their keys come last.
    """
    first = context.computed
    before = range(first)
    thought = context.thought
    if thought is not None and thought.dropped and thought.first is not None and thought.end:
        before = [*range(thought.first), *range(thought.end, first)]
    return torch.tensor([*before, *(first + depth for depth in depths)], device=device)


def attend_in_window(
    q_RHD: Tensor,
    span: Span,
    store: KVStore,
    layer: int,
    positions: Tensor,
    window: int,
    **how: Any,
) -> tuple[Tensor, Tensor]:
    """Attention of a span's rows to the keys within a sliding window, by their positions.

    Returns what `scored_attention` does, and takes its options.
    """
    seen = span.mask(None) & (positions[-span.rows :, None] - positions < window)
    return scored_attention(q_RHD, *read_span(span, store, layer, q_RHD.dtype), seen[None], **how)


def read_span(span: Span, store: KVStore, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values `[K, L, D]` of one layer."""
    scales = store.scales[layer]
    return (
        read(span, store.keys[layer], scales.get("k_scales"), dtype),
        read(span, store.values[layer], scales.get("v_scales"), dtype),
    )
