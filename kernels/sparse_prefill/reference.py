"""`sparse_prefill` in plain torch: the CPU path, and what the Triton kernel is compared with.

    out_i = sum_j exp(s_ij) v_j / sum_j exp(s_ij);   s_ij = scale * q_i . k_j
    over the keys j <= i of an equal label, and j = i where queries see themselves;
    or over the keys j <= i - recent of an equal label, and all those after them

Shape suffixes: T rows, H query heads, K KV heads, G = H / K, L keys, D head size; E = T x G, the
queries of one KV head; N keys of one label, or near some rows.
"""

import math

import torch
from torch import Tensor

from ..batch import PagedBatch
from ..quantise import read
from .labels import NO_QUERY, Labels
from .merge import merged

_TILE_ELEMENTS = 2**21
"""Logits held at a time, about; those of one row at the least."""
_LOG2_E = math.log2(math.e)


def paged_sparse_prefill(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: PagedBatch,
    labels: Labels,
    *,
    scale: float,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> Tensor:
    """The rows of a batch of one sequence: by labels, and all of the `labels.recent` newest keys.

    Arguments as `../paged_attention` has them. Returns `[T, H, Dv]` in q's dtype.
    """
    (span,) = batch.spans
    k_KLD = read(span, k_cache, k_scales, q_THD.dtype)
    v_KLD = read(span, v_cache, v_scales, q_THD.dtype)
    lse_TH = q_THD.new_empty(q_THD.shape[:2], dtype=torch.float32)
    far_THV = sparse_prefill(q_THD, k_KLD, v_KLD, labels, scale=scale, lse_TH=lse_TH)
    near_THV, near_lse_TH = _near(q_THD, k_KLD, v_KLD, labels.recent, scale)
    return merged(far_THV, lse_TH, near_THV, near_lse_TH)


def sparse_prefill(
    q_THD: Tensor,
    k_KLD: Tensor,
    v_KLD: Tensor,
    labels: Labels,
    *,
    scale: float,
    lse_TH: Tensor | None = None,
) -> Tensor:
    """Attention of a sequence's last T rows, each over what it sees; rows that see nothing are 0.

    q_THD: `[T, H, D]`. k_KLD, v_KLD: `[Hkv, L, D]`, of the whole sequence. Returns `[T, H, Dv]`
    in q's dtype; sums are in float32. lse_TH: float32, for base-2 log-sum-exps, minus infinity of
    rows that see nothing.
    """
    rows, _, size = q_THD.shape
    kv_heads, group = k_KLD.shape[0], labels.group
    q_KED = q_THD.view(rows, kv_heads, group, size).transpose(0, 1).flatten(1, 2)
    out_KED = q_THD.new_zeros(kv_heads, rows * group, v_KLD.shape[2])
    lse_KE = q_THD.new_full(out_KED.shape[:2], float("-inf"), dtype=torch.float32)
    nearest = max(labels.recent, int(labels.own))
    for head, labels_E in enumerate(labels.of_queries()):
        for label in labels_E.unique().tolist():
            if label == NO_QUERY:
                continue
            keys_N = (labels.keys_KL[head] == label).nonzero()[:, 0]
            entries = (labels_E == label).nonzero()[:, 0]
            for part_E in entries.split(max(1, _TILE_ELEMENTS // max(1, len(keys_N)))):
                places_E = labels.root + part_E // group
                out, lse = _attended(
                    q_KED[head, part_E].float() * scale,
                    places_E,
                    places_E - nearest,
                    keys_N,
                    k_KLD[head],
                    v_KLD[head],
                    labels.own,
                )
                out_KED[head, part_E] = out.to(q_THD.dtype)
                lse_KE[head, part_E] = lse
    if lse_TH is not None:
        lse_TH.copy_(lse_KE.unflatten(1, (rows, group)).transpose(0, 1).flatten(1, 2))
    return out_KED.unflatten(1, (rows, group)).transpose(0, 1).flatten(1, 2)


def _attended(
    q_ED: Tensor,
    places_E: Tensor,
    last_E: Tensor,
    keys_N: Tensor,
    k_LD: Tensor,
    v_LD: Tensor,
    own: bool,
) -> tuple[Tensor, Tensor]:
    """Queries of one label over its keys up to each one's last, and with `own` over its own key."""
    s_EN = q_ED @ k_LD[keys_N].float().T
    s_EN.masked_fill_(keys_N > last_E[:, None], float("-inf"))
    if own:  # a column apart, whether in the label or not
        s_E1 = (q_ED * k_LD[places_E].float()).sum(1, keepdim=True)
        s_EN = torch.cat([s_EN, s_E1], 1)
    lse_E = s_EN.logsumexp(1)
    p_EN = s_EN.sub_(lse_E[:, None]).exp_().nan_to_num_(0.0)
    out_ED = p_EN[:, : len(keys_N)] @ v_LD[keys_N].float()
    if own:
        out_ED += p_EN[:, -1:] * v_LD[places_E].float()
    return out_ED, lse_E * _LOG2_E


def _near(
    q_THD: Tensor, k_KLD: Tensor, v_KLD: Tensor, recent: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Each row over the newest `recent` keys, its own among them; and base-2 log-sum-exps."""
    rows, heads, size = q_THD.shape
    kv_heads, keys, _ = k_KLD.shape
    group, root = heads // kv_heads, keys - rows
    out = q_THD.new_empty(rows, heads, v_KLD.shape[2])
    lse_TH = q_THD.new_empty(rows, heads, dtype=torch.float32)
    # So many rows have up to twice `recent` keys near them.
    step = max(1, min(recent, _TILE_ELEMENTS // (heads * min(keys, 2 * recent))))
    for begin in range(0, rows, step):
        end = min(rows, begin + step)
        first = max(0, root + begin + 1 - recent)
        near = slice(first, root + end)
        q_TKGD = q_THD[begin:end].view(-1, kv_heads, group, size)
        # Heads of a group as rows of one product: their keys are not copied for each of them.
        q_KED = q_TKGD.transpose(0, 1).flatten(1, 2).float()
        s_KEN = q_KED * scale @ k_KLD[:, near].float().transpose(1, 2)
        place = torch.arange(root + begin, root + end, device=q_THD.device)
        place = place.repeat_interleave(group)[:, None]
        key = torch.arange(first, root + end, device=q_THD.device)
        s_KEN.masked_fill_((key > place) | (key <= place - recent), float("-inf"))
        lse_KE = s_KEN.logsumexp(-1)
        part_KED = s_KEN.sub_(lse_KE[..., None]).exp_() @ v_KLD[:, near].float()
        part_KTGD = part_KED.unflatten(1, (end - begin, group))
        out[begin:end] = part_KTGD.transpose(0, 1).flatten(1, 2).to(out.dtype)
        lse_KTG = lse_KE.unflatten(1, (end - begin, group))
        lse_TH[begin:end] = lse_KTG.transpose(0, 1).flatten(1, 2) * _LOG2_E
    return out, lse_TH
