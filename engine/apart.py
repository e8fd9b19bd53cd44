"""Attention of contexts under an evicting cache policy: it also says what each key received."""

from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from ..kernels.batch import Span
from ..kernels.kv_write.reference import kv_write
from ..kernels.quantise import read
from ..kernels.scored_attention.reference import scored_attention
from ..kvcache.keeping import Attended, Keeping
from ..kvcache.store import KVStore

_PROBABILITIES: Final = 1 << 25
"""How many are computed at a time: 128 MiB of them."""


@dataclass(slots=True, kw_only=True)
class ScoredRows:
    """Rows whose keys still lie where the page table says. `slots`: int64 `[R]`, theirs."""

    start: int
    stop: int
    keeping: Keeping
    span: Span
    slots: Tensor
    attended: Attended

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
        """Write, attend, and note what was attended to."""
        k_cache, v_cache = store.keys[layer], store.values[layer]
        scales = store.scales[layer]
        kv_write(k_RKD, v_RKD, k_cache, v_cache, self.slots, **scales)
        k_KLD = read(self.span, k_cache, scales.get("k_scales"), q_RHD.dtype)
        v_KLD = read(self.span, v_cache, scales.get("v_scales"), q_RHD.dtype)
        self.keeping.note_window(layer, window)
        seen = self.span.mask(window)[None]
        rows, heads, _ = q_RHD.shape
        piece = max(1, _PROBABILITIES // (heads * k_KLD.shape[1]))
        outs: list[Tensor] = []
        for first in range(0, rows, piece):
            part = slice(first, first + piece)
            out, weights = scored_attention(q_RHD[part], k_KLD, v_KLD, seen[:, part], **how)
            self.attended.add(weights, first)
            outs.append(out)
        return outs[0] if len(outs) == 1 else torch.cat(outs)


@dataclass(slots=True, kw_only=True)
class SlottedRows:
    """Rows of a context in slots: the newest token and its guesses. Nothing is written yet.

    `slots`: int64 `[S]`, where the context's slots are. `tree`: boolean `[R, R]`, which rows of the
    draft each row sees.
    """

    start: int
    stop: int
    keeping: Keeping
    slots: Tensor
    tree: Tensor
    attended: Attended
    _positions: Tensor = field(init=False)

    def __post_init__(self) -> None:
        depths = torch.tensor(self.attended.depths, device=self.slots.device)
        self._positions = self.keeping.length + depths

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
        """Attend to the slots and to the rows themselves, and keep what may have to be written."""
        every = self.slots.expand(k_RKD.shape[1], -1)
        held_k, held_v = store.decode(store.read_slots(layer, every), q_RHD.dtype)
        # Seen as they will be read from the cache, or guesses would see other keys than tokens do.
        rows = store.encode(k_RKD.transpose(0, 1), v_RKD.transpose(0, 1))
        k_KRD, v_KRD = store.decode(rows, q_RHD.dtype)
        seen = self.keeping.seen(self.attended.depths, window, layer)
        tree = self.tree
        if window is not None:
            tree = tree & (self._positions[:, None] - self._positions < window)
        seen = torch.cat([seen, tree.expand(seen.shape[0], -1, -1)], dim=-1)
        keys = torch.cat([held_k, k_KRD], dim=1), torch.cat([held_v, v_KRD], dim=1)
        out, weights = scored_attention(q_RHD, *keys, seen, **how)
        self.attended.add(weights)
        self.attended.stored.append(rows)
        return out
