"""Attention under an evicting cache policy: it also records the attention each key receives."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...kernels.backend import Kernels
from ...kernels.batch import PagedBatch, Span
from ...kernels.scored_attention.reference import scored_attention
from ...kvcache.attention_record import AttentionRecord
from ...kvcache.eviction_state import EvictionState
from ...kvcache.store import KVStore
from .ahead import Blocks
from .gapped import attend_in_window, read_span
from .write import written


@dataclass(slots=True, kw_only=True)
class ScoredRows:
    """Rows of one context whose keys still lie where its page table says; `batch`: these rows'.

    `positions`: of its keys, if keys are missing in a sliding window (see `key_positions`).
    `blocks`: if rows of a picture see each other.
    """

    rows: slice
    eviction_state: EvictionState
    batch: PagedBatch
    kernels: Kernels
    attention_record: AttentionRecord
    positions: Tensor | None = None
    blocks: Blocks | None = None

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
        """Write keys and values, attend, and record the attention weights."""
        caches, scales = written(self.kernels, store, layer, k_RKD, v_RKD, self.batch.slots)
        votes = self.attention_record.votes
        if self.blocks is not None and self.blocks.apply_to(window):
            (span,) = self.batch.spans
            out, weights = self.blocks.attend(
                q_RHD, span, store, layer, window, votes_R=votes, **how
            )
        elif window is not None and self.positions is not None:
            (span,) = self.batch.spans
            out, weights = attend_in_window(
                q_RHD, span, store, layer, self.positions, window, votes_R=votes, **how
            )
        else:
            out, (weights,) = self.kernels.scored_attention(
                q_RHD, *caches, self.batch, window=window, votes_T=votes, **how, **scales
            )
        self.attention_record.weights.append(weights)
        return out


@dataclass(slots=True, kw_only=True)
class SlottedRows:
    """The newest token of each of several contexts in slots, without draft tokens; each overwrites
    a victim.

    `contexts`: of each row, its eviction state and the record of its attention; either all rows are
    `scored` or none. `held`: the keys that the contexts hold, the rows' own included. `slots`:
    int64 `[layers, K, rows]`, where the rows' own keys go.
    """

    rows: slice | Tensor
    contexts: list[tuple[EvictionState, AttentionRecord]]
    scored: bool
    held: PagedBatch
    slots: Tensor
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
        """Write all keys and values, then attend to those held."""
        caches, scales = written(self.kernels, store, layer, k_RKD, v_RKD, self.slots[layer].T)
        if window is not None or any(state.has_holes for state, _ in self.contexts):
            return self._within(window, layer, q_RHD, store, how)
        if not self.scored:
            return self.kernels.paged_attention(q_RHD, *caches, self.held, **how, **scales)
        out, weights = self.kernels.scored_attention(q_RHD, *caches, self.held, **how, **scales)
        for (_, attention_record), weights_K1L in zip(self.contexts, weights, strict=True):
            attention_record.weights.append(weights_K1L[:, 0])
        return out

    def _within(
        self, window: int | None, layer: int, q_RHD: Tensor, store: KVStore, how: dict[str, Any]
    ) -> Tensor:
        """Attend in a layer with a sliding window of the model's own, or over holes; always in
        torch.

        Which keys are in the window depends on the positions of the slots' tokens, but paged
        kernels take keys to be in order of position.
        """
        outs: list[Tensor] = []
        for (eviction_state, attention_record), span, q_1HD in zip(
            self.contexts, self.held.spans, q_RHD.split(1), strict=True
        ):
            keys, values = read_span(span, store, layer, q_1HD.dtype)
            seen = eviction_state.visible(layer, window)
            out, weights = scored_attention(q_1HD, keys, values, seen, **how)
            outs.append(out)
            if self.scored:
                attention_record.weights.append(weights[:, 0])
        return outs[0] if len(outs) == 1 else torch.cat(outs)


@dataclass(slots=True, kw_only=True)
class SlottedDraft:
    """Rows of a context in slots: the newest token and its draft tokens. Nothing is written yet.

    Always in torch: which slots a row sees differs by head, and the rows' own keys are in no page.

    `held`: the keys that the context holds. `tree`: boolean `[R, R]`, which of the rows each row
    sees.
    """

    rows: slice
    eviction_state: EvictionState
    held: Span
    tree: Tensor
    attention_record: AttentionRecord
    _positions: Tensor = field(init=False)

    def __post_init__(self) -> None:
        depths = torch.tensor(self.attention_record.depths, device=self.tree.device)
        self._positions = self.eviction_state.length + depths

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
        """Attend to the slots and to the rows; record the keys and values to write if accepted."""
        held_k, held_v = read_span(self.held, store, layer, q_RHD.dtype)
        # As they will be read from the cache, or rows would see other keys in a draft than
        # without.
        stored = store.encode(k_RKD.transpose(0, 1), v_RKD.transpose(0, 1))
        k_KRD, v_KRD = store.decode(stored, q_RHD.dtype)
        seen = self.eviction_state.seen(self.attention_record.depths, window, layer)
        tree = self.tree
        if window is not None:
            tree = tree & (self._positions[:, None] - self._positions < window)
        seen = torch.cat([seen, tree.expand(seen.shape[0], -1, -1)], dim=-1)
        keys = torch.cat([held_k, k_KRD], dim=1), torch.cat([held_v, v_KRD], dim=1)
        out, weights = scored_attention(q_RHD, *keys, seen, **how)
        self.attention_record.weights.append(weights)
        self.attention_record.stored.append(stored)
        return out
