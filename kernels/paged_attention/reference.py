"""`paged_attention` in plain torch: the CPU path, and the oracle's neighbour.

Formula, per row and head, over the keys that the row sees (see README.md):

    s_j = scale * q . k_j;   s_j <- softcap * tanh(s_j / softcap)
    out = sum_j exp(s_j) v_j / (sum_j exp(s_j) + exp(sink))

Shape suffixes: T rows, H query heads, K KV heads, G = H / K, L keys, D head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import PagedBatch, ShortGroup, Span

_SHORT_ELEMENTS = 16_384
"""Keys of a sequence (heads x tokens x size) up to which gathering all of them costs less than a
call for each (measured: one call about 25 us, one gathered element about 0.6 ns)."""


def paged_attention(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: PagedBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Attention of every row of a step over its own sequence's paged keys.

    q_THD: `[T, H, D]`. k_cache, v_cache: `[pages, Hkv, page, D]`, this step's keys already
    written. Returns `[T, H, Dv]` in q's dtype.

    window: a row sees its own key and the `window - 1` before it. sinks_H: one logit a query
    head that takes part in the softmax but has no value (Xiao et al. 2023; gpt-oss).
    """
    simple = softcap is None and sinks_H is None
    groups: list[ShortGroup] = []
    spans = batch.spans
    if simple:
        groups, spans = batch.split(_SHORT_ELEMENTS // (k_cache.shape[1] * k_cache.shape[3]))

    def attend(span: Span) -> Tensor:
        k_KLD, v_KLD = span.keys(k_cache), span.keys(v_cache)
        q_RHD = q_THD[span.start : span.stop]
        first = 0
        if window is not None:
            # Keys before the first row's window are seen by no row.
            first = max(0, span.kv_length - (span.stop - span.start) - window + 1)
            k_KLD, v_KLD = k_KLD[:, first:], v_KLD[:, first:]
        if simple:
            return _fused(q_RHD, k_KLD, v_KLD, span, scale, window, first)
        return _explicit(q_RHD, k_KLD, v_KLD, span, scale, window, first, softcap, sinks_H)

    # One group or one span is all rows in their order.
    if len(groups) == 1 and not spans:
        return _short(q_THD, k_cache, v_cache, groups[0], scale, window)
    if len(spans) == 1 and not groups:
        return attend(spans[0])
    out = q_THD.new_empty(*q_THD.shape[:2], v_cache.shape[3])
    for group in groups:
        out[group.rows] = _short(q_THD[group.rows], k_cache, v_cache, group, scale, window)
    for span in spans:
        out[span.start : span.stop] = attend(span)
    return out


def _short(
    q_BHD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    group: ShortGroup,
    scale: float,
    window: int | None,
) -> Tensor:
    """Many single rows over few keys each, in one fused call."""
    k_BKLD, v_BKLD = group.keys(k_cache), group.keys(v_cache)
    q_BKGD = q_BHD.unflatten(1, (k_cache.shape[1], -1))
    out = F.scaled_dot_product_attention(
        q_BKGD, k_BKLD, v_BKLD, attn_mask=group.mask(window, q_BHD.dtype), scale=scale
    )
    return out.flatten(1, 2)


def _fused(
    q_RHD: Tensor,
    k_KLD: Tensor,
    v_KLD: Tensor,
    span: Span,
    scale: float,
    window: int | None,
    first: int,
) -> Tensor:
    """Softmax attention through torch's fused kernel; the GQA group is packed, never repeated."""
    rows, heads, size = q_RHD.shape
    kv_heads, keys, _ = k_KLD.shape
    group = heads // kv_heads
    if rows == 1:
        # One row: the query heads of a group are the "rows" of their KV head, no mask needed.
        q_KGD = q_RHD.view(kv_heads, group, size)
        out = F.scaled_dot_product_attention(q_KGD[None], k_KLD[None], v_KLD[None], scale=scale)
        return out.view(1, heads, -1)
    if rows == keys and window is None and span.tree is None:
        q_KGRD = q_RHD.transpose(0, 1).reshape(kv_heads, group, rows, size)
        k_KGLD = k_KLD[:, None].expand(kv_heads, group, keys, size)
        v_KGLD = v_KLD[:, None].expand(kv_heads, group, keys, v_KLD.shape[2])
        out = F.scaled_dot_product_attention(q_KGRD, k_KGLD, v_KGLD, is_causal=True, scale=scale)
        return out.reshape(heads, rows, -1).transpose(0, 1)
    # The query heads of a group are further rows of their KV head: one call, and no copy of a key.
    q_KND = q_RHD.view(rows, kv_heads, group, size).transpose(0, 1).reshape(kv_heads, -1, size)
    out = F.scaled_dot_product_attention(
        q_KND[None],
        k_KLD[None],
        v_KLD[None],
        attn_mask=span.packed_mask(window, group, first, q_RHD.dtype),
        scale=scale,
    )
    return out[0].view(kv_heads, rows, group, -1).transpose(0, 1).reshape(rows, heads, -1)


def _explicit(
    q_RHD: Tensor,
    k_KLD: Tensor,
    v_KLD: Tensor,
    span: Span,
    scale: float,
    window: int | None,
    first: int,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """The formula step by step in float32, for what the fused kernel does not know."""
    rows, heads, size = q_RHD.shape
    kv_heads, keys, _ = k_KLD.shape
    group = heads // kv_heads
    q_KND = q_RHD.transpose(0, 1).reshape(kv_heads, group * rows, size).float()
    scores = (q_KND @ k_KLD.transpose(1, 2).float()) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores_HRL = scores.view(heads, rows, keys)
    scores_HRL.masked_fill_(~span.mask(window)[:, first:], float("-inf"))
    if sinks_H is not None:
        sink = sinks_H.float()[:, None, None].expand(heads, rows, 1)
        probs = torch.cat([scores_HRL, sink], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        probs = scores_HRL.softmax(dim=-1)
    out = probs.reshape(kv_heads, group * rows, keys) @ v_KLD.float()
    return out.view(heads, rows, -1).transpose(0, 1).to(q_RHD.dtype)
