"""Attention of pictures whose rows see each other, in models that attend so within a picture.

row     t t P P P P t        a row sees what is before it and, in a picture, all of the picture;
sees    # . . . . . .        in layers with a sliding window only what is less than a window
        # # . . . . .        before it
        # # # # # # .
        # # # # # # .        Gemma 3 attends so in all layers, Gemma 4 in those with a window.
        # # # # # # .
        # # # # # # .
        # # # # # # #
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.backend import Kernels
from ...kernels.batch import PagedBatch, Span
from ...kernels.scored_attention.reference import scored_attention
from ...kvcache.store import KVStore
from .gapped import read_span
from .write import written


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Which rows of a chunk see each other: consecutive rows that are of one picture.

    `of_row`: int64 `[R]`, a number for each picture and -1 for other rows. `windows_only`: so it is
    in layers with a sliding window, and the other layers are causal.
    """

    of_row: Tensor
    windows_only: bool

    def apply_to(self, window: int | None) -> bool:
        """Whether rows of a layer with this window see each other."""
        return window is not None or not self.windows_only

    def seen(self, span: Span, window: int | None) -> Tensor:
        """Boolean `[R, keys]`: which keys each row sees."""
        of = self.of_row
        together = (of[:, None] == of) & (of[:, None] >= 0)
        if window is not None:
            row = torch.arange(len(of), device=of.device)
            together &= row[:, None] - row < window
        seen = span.mask(window).clone()
        seen[:, span.kv_length - len(of) :] |= together
        return seen

    def attend(
        self,
        q_RHD: Tensor,
        span: Span,
        store: KVStore,
        layer: int,
        window: int | None,
        **how: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attention of a span's rows; returns what `scored_attention` does, and takes its
        options."""
        keys, values = read_span(span, store, layer, q_RHD.dtype)
        return scored_attention(q_RHD, keys, values, self.seen(span, window)[None], **how)


@dataclass(slots=True, kw_only=True)
class AheadRows:
    """Rows of one context, among them rows of pictures; `batch`: these rows'."""

    rows: slice
    batch: PagedBatch
    blocks: Blocks
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
        """Write keys and values, then attend; in torch where rows see each other."""
        caches, scales = written(self.kernels, store, layer, k_RKD, v_RKD, self.batch.slots)
        if not self.blocks.apply_to(window):
            return self.kernels.paged_attention(
                q_RHD, *caches, self.batch, window=window, **how, **scales
            )
        (span,) = self.batch.spans
        return self.blocks.attend(q_RHD, span, store, layer, window, **how)[0]
