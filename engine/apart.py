"""Attention of contexts under an evicting cache policy: it also says what each key received."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..kernels.batch import PagedBatch, Span
from ..kernels.kv_write.reference import kv_write
from ..kernels.paged_attention.reference import paged_attention
from ..kernels.quantise import read
from ..kernels.scored_attention.reference import scored_attention
from ..kvcache.keeping import Attended, Keeping
from ..kvcache.store import KVStore


@dataclass(slots=True, kw_only=True)
class ScoredRows:
    """Rows whose keys still lie where the page table says. `slots`: int64 `[R]`, theirs."""

    rows: slice
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
        caches = store.keys[layer], store.values[layer]
        kv_write(k_RKD, v_RKD, *caches, self.slots, **store.scales[layer])
        self.keeping.note_window(layer, window)
        seen = self.span.mask(window)[None]
        if window is None:  # all rows see all keys that were there before them
            seen = seen[..., -q_RHD.shape[0] :]
        keys, values = _read(self.span, store, layer, q_RHD.dtype)
        out, weights = scored_attention(
            q_RHD, keys, values, seen, votes_R=self.attended.votes, **how
        )
        self.attended.weights.append(weights)
        return out


@dataclass(slots=True, kw_only=True)
class SlottedRow:
    """The newest token of a context in slots, without guesses. `held`: the keys held with it."""

    keeping: Keeping
    held: PagedBatch
    attended: Attended

    def attend(
        self,
        layer: int,
        q_1HD: Tensor,
        store: KVStore,
        *,
        window: int | None,
        **how: Any,
    ) -> Tensor:
        """Attend to what is held, which the row's own key is among."""
        seen = self.keeping.visible(layer, window)
        scored = self.keeping.retention.score is not None
        if seen is None and not scored:
            caches = store.keys[layer], store.values[layer]
            return paged_attention(q_1HD, *caches, self.held, **how, **store.scales[layer])
        keys, values = _read(self.held.spans[0], store, layer, q_1HD.dtype)
        out, weights = scored_attention(q_1HD, keys, values, seen, **how)
        if scored:
            self.attended.weights.append(weights[:, 0])
        return out


@dataclass(slots=True, kw_only=True)
class SlottedRows:
    """All rows of a step of that kind: each takes a victim's place before it attends.

    `slots`: int64 `[layers, K, rows]`, where their keys go.
    """

    rows: slice | Tensor
    members: list[SlottedRow]
    slots: Tensor

    def attend(
        self, layer: int, q_RHD: Tensor, k_RKD: Tensor, v_RKD: Tensor, store: KVStore, **how: Any
    ) -> Tensor:
        """Write all, attend one context after the other."""
        stored = store.encode(k_RKD.transpose(0, 1), v_RKD.transpose(0, 1))
        store.write_slots(layer, self.slots[layer], stored)
        outs = [
            member.attend(layer, q_1HD, store, **how)
            for member, q_1HD in zip(self.members, q_RHD.split(1), strict=True)
        ]
        return outs[0] if len(outs) == 1 else torch.cat(outs)


@dataclass(slots=True, kw_only=True)
class SlottedDraft:
    """Rows of a context in slots: the newest token and its guesses. Nothing is written yet.

    `held`: the keys that are held. `tree`: boolean `[R, R]`, which rows of the draft each row sees.
    """

    rows: slice
    keeping: Keeping
    held: Span
    tree: Tensor
    attended: Attended
    _positions: Tensor = field(init=False)

    def __post_init__(self) -> None:
        depths = torch.tensor(self.attended.depths, device=self.tree.device)
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
        held_k, held_v = _read(self.held, store, layer, q_RHD.dtype)
        # Seen as they will be read from the cache, or guesses would see other keys than tokens do.
        stored = store.encode(k_RKD.transpose(0, 1), v_RKD.transpose(0, 1))
        k_KRD, v_KRD = store.decode(stored, q_RHD.dtype)
        seen = self.keeping.seen(self.attended.depths, window, layer)
        tree = self.tree
        if window is not None:
            tree = tree & (self._positions[:, None] - self._positions < window)
        seen = torch.cat([seen, tree.expand(seen.shape[0], -1, -1)], dim=-1)
        keys = torch.cat([held_k, k_KRD], dim=1), torch.cat([held_v, v_KRD], dim=1)
        out, weights = scored_attention(q_RHD, *keys, seen, **how)
        self.attended.weights.append(weights)
        self.attended.stored.append(stored)
        return out


def _read(span: Span, store: KVStore, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values `[K, L, D]` of one layer."""
    scales = store.scales[layer]
    return (
        read(span, store.keys[layer], scales.get("k_scales"), dtype),
        read(span, store.values[layer], scales.get("v_scales"), dtype),
    )
