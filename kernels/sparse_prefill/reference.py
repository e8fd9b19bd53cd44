"""`sparse_prefill` in plain torch: the CPU path, and what the Triton kernel is compared with.

    out_i = sum_j exp(s_ij) v_j / sum_j exp(s_ij);   s_ij = scale * q_i . k_j
    over the keys j <= i of an equal label, and j = i where queries see themselves

Shape suffixes: T rows, H query heads, K KV heads, G = H / K, L keys, D head size; E = T x G, the
queries of one KV head; N keys of one label.
"""

import torch
from torch import Tensor

from .labels import NO_QUERY, Labels

_TILE_ELEMENTS = 2**21
"""Logits held at a time."""


def sparse_prefill(
    q_THD: Tensor, k_KLD: Tensor, v_KLD: Tensor, labels: Labels, *, scale: float
) -> Tensor:
    """Attention of a sequence's last T rows, each over what it sees; rows that see nothing are 0.

    q_THD: `[T, H, D]`. k_KLD, v_KLD: `[Hkv, L, D]`, of the whole sequence. Returns `[T, H, Dv]`
    in q's dtype; sums are in float32.
    """
    rows, _, size = q_THD.shape
    kv_heads, group = k_KLD.shape[0], labels.group
    q_KED = q_THD.view(rows, kv_heads, group, size).transpose(0, 1).flatten(1, 2)
    out_KED = q_THD.new_zeros(kv_heads, rows * group, v_KLD.shape[2])
    for head, labels_E in enumerate(labels.of_queries()):
        for label in labels_E.unique().tolist():
            if label == NO_QUERY:
                continue
            keys_N = (labels.keys_KL[head] == label).nonzero()[:, 0]
            entries = (labels_E == label).nonzero()[:, 0]
            for part_E in entries.split(max(1, _TILE_ELEMENTS // max(1, len(keys_N)))):
                out_KED[head, part_E] = _attended(
                    q_KED[head, part_E].float() * scale,
                    labels.root + part_E // group,
                    keys_N,
                    k_KLD[head],
                    v_KLD[head],
                    labels.own,
                ).to(q_THD.dtype)
    return out_KED.unflatten(1, (rows, group)).transpose(0, 1).flatten(1, 2)


def _attended(
    q_ED: Tensor, places_E: Tensor, keys_N: Tensor, k_LD: Tensor, v_LD: Tensor, own: bool
) -> Tensor:
    """Queries of one label, at these positions, over its keys, and each over its own key."""
    s_EN = q_ED @ k_LD[keys_N].float().T
    # One's own key is a column apart, in or out of the label.
    before = keys_N < places_E[:, None] if own else keys_N <= places_E[:, None]
    s_EN.masked_fill_(~before, float("-inf"))
    if not own:
        return s_EN.softmax(1).nan_to_num(0.0) @ v_LD[keys_N].float()
    s_E1 = (q_ED * k_LD[places_E].float()).sum(1, keepdim=True)
    p_EN, p_E1 = torch.cat([s_EN, s_E1], 1).softmax(1).split([len(keys_N), 1], 1)
    return p_EN @ v_LD[keys_N].float() + p_E1 * v_LD[places_E].float()
