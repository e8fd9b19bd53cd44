"""Which queries see which keys: those of an equal label that are not after them.

Both forms of sparse causal attention are labels. Kept queries and keys have one, dropped ones have
labels of their own that match nothing; or a label is the bucket of a hash.

Shape suffixes: T rows, H query heads, K KV heads, G = H / K, L keys, D head size, R rotated size;
N blocks of keys.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

NO_QUERY: Final = 2**31 - 2
"""Label of a dropped query: no key has it. Behind all others, as is that of a key, for sorting."""
NO_KEY: Final = 2**31 - 1
"""Label of a dropped key: no query has it."""
BLOCK: Final = 64
"""Keys of which `light` keeps a part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Labels of a sequence's last rows and of all its keys.

    `queries_TH`, `keys_KL`: int32, from 0 on. Row t is at position L - T + t, key j at j.
    `own`: a query that is not dropped also sees the key at its own position, whatever its label.
    `recent`: labels are about keys at least this many positions before a query; those that are
    nearer are attended to apart, all of them (`paged_sparse_prefill`).
    """

    queries_TH: Tensor
    keys_KL: Tensor
    own: bool
    recent: int = 0

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.queries_TH.shape[1] // self.keys_KL.shape[0]

    @property
    def root(self) -> int:
        """Position of row 0."""
        return self.keys_KL.shape[1] - self.queries_TH.shape[0]

    def of_queries(self) -> Tensor:
        """`[K, T x G]`: for each KV head, the labels of all queries that read it, row by row."""
        rows, kv_heads = self.queries_TH.shape[0], self.keys_KL.shape[0]
        labels_TKG = self.queries_TH.view(rows, kv_heads, self.group)
        return labels_TKG.transpose(0, 1).reshape(kv_heads, rows * self.group).contiguous()


def kept(queries_TH: Tensor, keys_KL: Tensor, *, recent: int = 0) -> Labels:
    """QK-sparse: bool, True for what stays.

    A dropped query, and one before which no key is kept, gets zeros: its own key counts as any
    other, and not at all if dropped.
    """
    return Labels(
        queries_TH=torch.where(queries_TH, 0, NO_QUERY).int(),
        keys_KL=torch.where(keys_KL, 0, NO_KEY).int(),
        own=False,
        recent=recent,
    )


def light(k_KLD: Tensor, keep: float, sink: int) -> Tensor:
    """Masks `[K, L]` for `kept`: of each whole block of keys the share `keep` with least norm.

    Keys of small norm are those that attention goes to (Devoto et al. 2024, arXiv:2406.11430). The
    first `sink` keys stay too. A key's fate depends on its own block alone; of the last block, if
    it is not whole, none is kept, so let queries see `recent` >= BLOCK keys otherwise.
    """
    kv_heads, keys, _ = k_KLD.shape
    whole = keys // BLOCK * BLOCK
    norms_KN = k_KLD[:, :whole].float().norm(dim=-1).view(kv_heads, -1, BLOCK)
    first = norms_KN.topk(-int(-keep * BLOCK // 1), dim=-1, largest=False).indices
    masks = torch.zeros(kv_heads, keys, dtype=torch.bool, device=k_KLD.device)
    masks[:, :whole].view(kv_heads, -1, BLOCK).scatter_(2, first, True)
    masks[:, :sink] = True
    return masks


def hashed(
    q_THD: Tensor,
    k_KLD: Tensor,
    rotations_KDR: Tensor,
    *,
    centres_KD: Tensor | None = None,
    recent: int = 0,
) -> Labels:
    """Hash-sparse: `argmax([x R, -x R])`, in float32, with one rotation R for each KV head.

    A query sees its own key in any bucket, so none is without: one whose bucket holds no other key
    that it may see returns its own value. `centres_KD` are taken from the keys before: attention
    does not change when all keys move alike, but their buckets become more even.
    """
    rows, heads, size = q_THD.shape
    kv_heads = k_KLD.shape[0]
    q_KED = q_THD.view(rows, kv_heads, heads // kv_heads, size).transpose(0, 1).flatten(1, 2)
    queries_KE = _buckets(q_KED, rotations_KDR)
    queries_TKG = queries_KE.view(kv_heads, rows, heads // kv_heads).transpose(0, 1)
    return Labels(
        queries_TH=queries_TKG.reshape(rows, heads),
        keys_KL=_buckets(
            k_KLD if centres_KD is None else k_KLD.float() - centres_KD[:, None], rotations_KDR
        ),
        own=recent == 0,
        recent=recent,
    )


def _buckets(x_KED: Tensor, rotations_KDR: Tensor) -> Tensor:
    rotated = x_KED.float() @ rotations_KDR.float()
    return torch.cat([rotated, -rotated], dim=-1).argmax(-1).int()
