"""Warm-up: launch every kernel that a model needs at start-up, since compiling takes seconds each.

Kernels are compiled separately for each kind of step: one token over few or many keys, a draft
tree, a chunk of a prompt (chunked prefill), each with and without scores. All other variants, such
as windows, softcap, sinks, head sizes and dtypes, come from forward passes of the model itself.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...kernels.backend import Kernels
from ...kernels.batch import PagedBatch
from ...kernels.paged_attention.ragged import SPLIT_TOKENS, WINDOW_ROWS
from ...kernels.sparse_prefill.labels import BLOCK, Labels, kept
from ...kvcache.store import KVStore

logger = logging.getLogger(__name__)

_SLOTS: Final = 8
"""Slots of the context in which the eviction kernel chooses a victim."""


def warm_up(
    model: nn.Module,
    store: KVStore,
    kernels: Kernels,
    device: torch.device,
    clock: Callable[[], float],
    *,
    evicts: bool,
    sparse: bool,
) -> None:
    """Compile the Triton kernels on CUDA; nothing elsewhere. The store must still be empty.

    `evicts`: requests may ask for a cache policy that evicts. `sparse`: requests may ask for sparse
    prefill.
    """
    if device.type != "cuda" or kernels.backend != "triton":
        return
    begun_s = clock()
    launch_all(model, store, kernels, device, evicts=evicts, sparse=sparse)
    torch.cuda.synchronize(device)
    logger.info("warm-up: all kernels compiled and launched in %.1f s", clock() - begun_s)


@torch.inference_mode()
def launch_all(
    model: nn.Module,
    store: KVStore,
    kernels: Kernels,
    device: torch.device,
    *,
    evicts: bool,
    sparse: bool,
) -> None:
    """Run three forward passes, in which each layer launches all kernels of one kind of step."""
    wanted = torch.tensor([0], device=device)
    for rows, tree in ((1, False), (2, True), (WINDOW_ROWS + 1, False)):
        zeros = torch.zeros(1, rows, dtype=torch.int64, device=device)
        lengths = sorted({rows, max(rows, SPLIT_TOKENS + 1)})
        room = store.pages * store.page_size
        batches = [_batch(rows, keys, tree, store, device) for keys in lengths if keys <= room]
        if batches:
            step = _Launches(
                store=store, kernels=kernels, batches=batches, scored=evicts, sparse=sparse
            )
            model(
                input_ids=zeros,
                position_ids=zeros,
                use_cache=False,
                logits_to_keep=wanted,
                penstock_step=step,
            )
    if evicts:
        _choose_a_victim(store, kernels, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Launches:
    """A stand-in for a step: launches every kernel for each batch, and returns zeros."""

    store: KVStore
    kernels: Kernels
    batches: Sequence[PagedBatch]
    scored: bool
    sparse: bool

    def __call__(
        self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, **how: Any
    ) -> Tensor:
        """One layer; returns zeros, since most of the keys were never written."""
        kernels, scales = self.kernels, self.store.scales[layer]
        caches = self.store.keys[layer], self.store.values[layer]
        votes_T = torch.ones(q_THD.shape[0], device=q_THD.device)
        for batch in self.batches:
            kernels.kv_write(k_THD, v_THD, *caches, batch.slots, **scales)
            kernels.paged_attention(q_THD, *caches, batch, **how, **scales)
            if self.sparse and how["window"] is None and not batch.trees:
                labels = _all_kept(q_THD, k_THD.shape[1], batch.kv_lengths[0])
                kernels.sparse_prefill(q_THD, *caches, batch, labels, scale=how["scale"], **scales)
            if not self.scored:
                continue
            by_head = batch.slots[:, None].expand(-1, k_THD.shape[1])
            kernels.kv_write(k_THD, v_THD, *caches, by_head, **scales)
            # Scores of draft tokens are kept row by row, those of a prompt are summed by votes.
            if q_THD.shape[0] <= WINDOW_ROWS:
                kernels.scored_attention(q_THD, *caches, batch, **how, **scales)
            if not batch.trees:
                kernels.scored_attention(q_THD, *caches, batch, votes_T=votes_T, **how, **scales)
        return q_THD.new_zeros(*q_THD.shape[:2], v_THD.shape[2])


def _batch(rows: int, keys: int, tree: bool, store: KVStore, device: torch.device) -> PagedBatch:
    """The last `rows` rows of a context of `keys` keys, in the first pages of the store."""
    return PagedBatch(
        page_size=store.page_size,
        query_starts=[0, rows],
        kv_lengths=[keys],
        tables=[list(range(-(-keys // store.page_size)))],
        slots=torch.arange(keys - rows, keys, device=device),
        trees={0: list(range(-1, rows - 2))} if tree else {},
    )


def _all_kept(q_THD: Tensor, kv_heads: int, keys: int) -> Labels:
    queries = torch.ones(q_THD.shape[:2], dtype=torch.bool, device=q_THD.device)
    return kept(queries, queries.new_ones(kv_heads, keys), recent=BLOCK)


def _choose_a_victim(store: KVStore, kernels: Kernels, device: torch.device) -> None:
    heads = len(store.keys) * store.keys[0].shape[1]
    positions = torch.arange(_SLOTS, dtype=torch.int32, device=device).repeat(1, heads, 1)
    length, recent, sink = (
        torch.tensor([number], dtype=torch.int32, device=device) for number in (_SLOTS, 1, 1)
    )
    kernels.evict(
        torch.zeros(1, heads, _SLOTS, device=device),
        positions,
        *(length, recent, sink),
        torch.zeros(1, -(-_SLOTS // store.page_size), dtype=torch.int32, device=device),
        torch.empty(1, heads, dtype=torch.int64, device=device),
        page_size=store.page_size,
    )
