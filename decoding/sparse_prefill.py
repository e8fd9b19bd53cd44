"""Sparse attention for long prompts: `sparse_prefill` (Pagliardini et al. 2023, arXiv:2306.01160).

Rows of a prompt from `min_tokens` on see the newest `recent` keys and only some of the older ones.
The choice depends on positions and on the queries and keys themselves: chunked prefill and prefix
cache hits do not change it.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ..kernels.paged_attention.tiles import Tiles
from ..kernels.sparse_prefill.labels import BLOCK, Labels, hashed, kept, light
from ..kernels.sparse_prefill.lists import Lists, choose
from .prefill import Labeller, Prefill
from .sparse_parameters import BUCKETS, KEEP, LEAST_RECENT, SINK, SparsePrefillParameters

assert LEAST_RECENT >= BLOCK, "a block is whole before rows see a part of it"
_SAMPLE: Final = 4096
"""Keys before `min_tokens` that serve to measure how even the buckets are."""
_FINE: Final = Tiles(block_m=16, block_n=16, warps=4, stages=2)
"""So small that a sample is about as dense in these tiles as a long prompt in larger ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ByNorm:
    keep: float
    sink: int
    recent: int

    def __call__(self, q_THD: Tensor, k_KLD: Tensor) -> Labels:
        """See `Labeller`."""
        every = torch.ones(q_THD.shape[:2], dtype=torch.bool, device=q_THD.device)
        return kept(every, light(k_KLD, self.keep, self.sink), recent=self.recent)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ByBucket:
    rotations_KDR: Tensor
    centres_KD: Tensor
    recent: int

    def __call__(self, q_THD: Tensor, k_KLD: Tensor) -> Labels:
        """See `Labeller`."""
        return hashed(
            q_THD, k_KLD, self.rotations_KDR, centres_KD=self.centres_KD, recent=self.recent
        )

    def uneven(self, k_KLD: Tensor) -> bool:
        """Whether rows would see too many keys if they fell into the buckets as these keys do."""
        q_LKD = k_KLD.transpose(0, 1)[:0]
        buckets_KL = self(q_LKD, k_KLD).keys_KL[:, -_SAMPLE:]
        labels = Labels(queries_TH=buckets_KL.T.contiguous(), keys_KL=buckets_KL, own=False)
        return choose(Lists.of(labels, _FINE)).dense


class SparsePrefill(Prefill[SparsePrefillParameters]):
    """Sees older keys of small norm, or those in the query's bucket."""

    name = "sparse_prefill"
    parameters = SparsePrefillParameters
    summary = "Rows of a long prompt see its newest keys and a part of the others: approximate."

    def first(self, parameters: SparsePrefillParameters) -> int | None:
        """See `Prefill`."""
        return None if parameters.method == "off" else parameters.min_tokens

    def labeller(
        self, parameters: SparsePrefillParameters, layer: int, beginning_KPD: Tensor
    ) -> Labeller | None:
        """See `Prefill`."""
        recent = parameters.recent
        if parameters.method == "qk":
            keep, sink = parameters.keep, parameters.sink
            return _ByNorm(
                keep=KEEP if keep is None else keep,
                sink=SINK if sink is None else sink,
                recent=recent,
            )
        by_bucket = _ByBucket(
            rotations_KDR=_rotations(layer, beginning_KPD, parameters.buckets or BUCKETS),
            centres_KD=beginning_KPD.float().mean(1),
            recent=recent,
        )
        return None if by_bucket.uneven(beginning_KPD) else by_bucket


def _rotations(layer: int, like_KPD: Tensor, buckets: int) -> Tensor:
    """Random rotations of a layer, the same for all requests, because they may share pages."""
    random = torch.Generator().manual_seed(layer)
    kv_heads, _, size = like_KPD.shape
    return torch.randn(kv_heads, size, buckets // 2, generator=random).to(like_KPD.device)


SPARSE_PREFILL = SparsePrefill()
