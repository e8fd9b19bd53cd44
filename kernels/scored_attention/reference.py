"""`scored_attention` in plain torch: attention that also says how much each key received.

    s_j = scale * q . k_j;   s_j <- softcap * tanh(s_j / softcap)
    p_j = exp(s_j) / (sum_i exp(s_i) + exp(sink))
    out = sum_j p_j v_j;     weight_j = sum of p_j over the query heads of the KV head

Shape suffixes: R rows, H query heads, K KV heads, G = H / K, L keys, D head size.
"""

from typing import Final

import torch
from torch import Tensor

from ..batch import PagedBatch
from ..quantise import read

_TILE: Final = 1 << 19
"""Probabilities computed at a time: 2 MiB, which a processor's cache holds (measured: three times
as fast as all at once, and as fast as the fused kernel)."""
_TILE_ELSEWHERE: Final = 1 << 25
"""Where calls cost more than memory does: 128 MiB."""


def scored_attention(
    q_RHD: Tensor,
    k_KLD: Tensor,
    v_KLD: Tensor,
    seen: Tensor | None = None,
    *,
    scale: float,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    votes_R: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of one sequence's rows over keys that need not be in order.

    seen: boolean `[K or 1, R, S]`, of the last S keys; those before are seen by all rows. None: all
    are. Every row sees at least one key. votes_R: what each row's attention counts.

    Returns `[R, H, Dv]` in q's dtype, and weights in float32: `[K, R, L]`, of which each row's add
    up to G, less what sinks take; with votes `[K, L]`, the sum over the rows.
    """
    rows, heads, _ = q_RHD.shape
    kv_heads, keys, _ = k_KLD.shape
    group = heads // kv_heads
    if rows == 1 and seen is None and softcap is None and sinks_H is None and votes_R is None:
        return _one_row(q_RHD, k_KLD, v_KLD, scale)
    q_KRGD = q_RHD.unflatten(1, (kv_heads, group)).transpose(0, 1).float() * scale
    sinks_KG = None if sinks_H is None else sinks_H.float().view(kv_heads, group)
    out_KRGD = q_KRGD.new_empty(kv_heads, rows, group, v_KLD.shape[2])
    if votes_R is None:
        weights = q_KRGD.new_empty(kv_heads, rows, keys)
    else:
        weights = q_KRGD.new_zeros(kv_heads, keys)
    tile = _TILE if q_RHD.device.type == "cpu" else _TILE_ELSEWHERE
    at_once = kv_heads if heads * rows * keys <= tile else 1
    piece = max(1, tile // (at_once * group * keys))
    for first in range(0, kv_heads, at_once):
        of = slice(first, first + at_once)
        k_KDL, v = k_KLD[of].float().transpose(1, 2), v_KLD[of].float()
        seen_KRS = seen if seen is None or seen.shape[0] == 1 else seen[of]
        sinks = None if sinks_KG is None else sinks_KG[of]
        for begin in range(0, rows, piece):
            part = slice(begin, begin + piece)
            q_KND = q_KRGD[of, part].flatten(1, 2)
            here = None if seen_KRS is None else seen_KRS[:, part]
            probs_KNL = _probabilities(torch.bmm(q_KND, k_KDL), group, here, softcap, sinks)
            out_KRGD[of, part] = torch.bmm(probs_KNL, v).unflatten(1, (-1, group))
            if votes_R is None:
                weights[of, part] = _grouped(probs_KNL, group).sum(dim=2)
            else:
                votes_N = votes_R[part].repeat_interleave(group)
                weights[of] += votes_N @ probs_KNL
    return out_KRGD.transpose(0, 1).flatten(1, 2).to(q_RHD.dtype), weights


def paged_scored_attention(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: PagedBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    votes_T: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The same of every row of a step over its own sequence's paged keys.

    Arguments as `../paged_attention` has them. votes_T: float32 `[T]`, what each row's attention
    counts. Returns `[T, H, Dv]` in q's dtype, and of each sequence that has rows `[K, rows, keys]`
    in float32; with votes `[K, keys]`.
    """
    outs: list[Tensor] = []
    found: list[Tensor] = []
    for span in batch.spans:
        rows = slice(span.start, span.stop)
        seen = None
        if window is not None:
            seen = span.mask(window)[None]
        elif span.rows > 1:  # what was there before them all rows see
            seen = span.mask(None)[None, :, -span.rows :]
        out, weights = scored_attention(
            q_THD[rows],
            read(span, k_cache, k_scales, q_THD.dtype),
            read(span, v_cache, v_scales, q_THD.dtype),
            seen,
            scale=scale,
            softcap=softcap,
            sinks_H=sinks_H,
            votes_R=None if votes_T is None else votes_T[rows],
        )
        outs.append(out)
        found.append(weights)
    return outs[0] if len(outs) == 1 else torch.cat(outs), found


def _one_row(q_1HD: Tensor, k_KLD: Tensor, v_KLD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The same in as few calls as possible: with few keys these are what takes time."""
    q_KGD = q_1HD.view(k_KLD.shape[0], -1, q_1HD.shape[2]).float() * scale
    probs_KGL = torch.bmm(q_KGD, k_KLD.float().transpose(1, 2)).softmax(dim=-1)
    out_KGD = torch.bmm(probs_KGL, v_KLD.float())
    weights = probs_KGL if q_KGD.shape[1] == 1 else probs_KGL.sum(dim=1, keepdim=True)
    return out_KGD.flatten(0, 1)[None].to(q_1HD.dtype), weights


def _probabilities(
    scores_KNL: Tensor,
    group: int,
    seen: Tensor | None,
    softcap: float | None,
    sinks_KG: Tensor | None,
) -> Tensor:
    """Softmax over the keys that a row sees; `scores_KNL`, N = rows x group, may be overwritten."""
    if softcap is not None:
        scores_KNL = softcap * torch.tanh(scores_KNL / softcap)
    if seen is not None:
        last = _grouped(scores_KNL, group)[..., scores_KNL.shape[-1] - seen.shape[-1] :]
        last.masked_fill_(~seen[:, :, None], float("-inf"))
    if sinks_KG is None:
        return scores_KNL.softmax(dim=-1)
    sink_KN1 = sinks_KG.repeat(1, scores_KNL.shape[1] // group)[..., None]
    return torch.cat([scores_KNL, sink_KN1], dim=-1).softmax(dim=-1)[..., :-1]


def _grouped(values_KNL: Tensor, group: int) -> Tensor:
    """`[K, R, G, L]`, the same memory."""
    return values_KNL.unflatten(1, (-1, group))
