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
from ..quantise import read

_Caches = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Keys and values of one layer, and their scales."""
_SHORT_ELEMENTS = 16_384
"""Keys of a sequence (heads x tokens x size) up to which gathering all of them costs less than a
call for each (measured: one call about 25 us, one gathered element about 0.6 ns)."""
_WINDOW_ROWS = 32
"""Rows of a sequence up to which query heads are packed as rows, with a mask for each of them."""


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
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> Tensor:
    """Attention of every row of a step over its own sequence's paged keys.

    q_THD: `[T, H, D]`. k_cache, v_cache: `[pages, Hkv, page, D]`, this step's keys already
    written. Returns `[T, H, Dv]` in q's dtype.

    window: a row sees its own key and the `window - 1` before it. sinks_H: one logit a query
    head that takes part in the softmax but has no value (Xiao et al. 2023; gpt-oss).
    k_scales, v_scales: float32 `[pages, Hkv, page, 1]`, of caches in 8 bits; what is computed with
    are the numbers that are stored, in q's dtype.
    """
    caches = k_cache, v_cache, k_scales, v_scales
    options = scale, window
    if softcap is not None or sinks_H is not None:
        out = q_THD.new_empty(*q_THD.shape[:2], v_cache.shape[3])
        for span in batch.spans:
            rows = slice(span.start, span.stop)
            k_KLD, v_KLD, first = _seen(span, caches, window, q_THD.dtype)
            out[rows] = _explicit(
                q_THD[rows], k_KLD, v_KLD, span, *options, first, softcap, sinks_H
            )
        return out
    groups, spans = batch.split(_SHORT_ELEMENTS // (k_cache.shape[1] * k_cache.shape[3]))
    # One group or one span is all rows in their order.
    if len(groups) == 1 and not spans:
        return _short(q_THD, caches, groups[0], *options)
    if len(spans) == 1 and not groups and spans[0].rows > _WINDOW_ROWS:
        return _long(q_THD, caches, spans[0], *options)
    count, heads, size = q_THD.shape
    kv_heads = k_cache.shape[1]
    group_size = heads // kv_heads
    # The query heads of a group are further rows of their KV head: no key is ever repeated.
    q_KND = (
        q_THD.view(count, kv_heads, group_size, size).transpose(0, 1).reshape(kv_heads, -1, size)
    )
    out_KND = q_KND.new_empty(*q_KND.shape[:2], v_cache.shape[3])
    out_TKGD = out_KND.view(kv_heads, count, group_size, -1).transpose(0, 1)
    for group in groups:
        part = _short(q_THD[group.rows], caches, group, *options)
        out_TKGD[group.rows] = part.unflatten(1, (kv_heads, group_size))
    for span in spans:
        rows = slice(span.start, span.stop)
        if span.rows > _WINDOW_ROWS:
            part = _long(q_THD[rows], caches, span, *options)
            out_TKGD[rows] = part.unflatten(1, (kv_heads, group_size))
        else:
            rows = slice(span.start * group_size, span.stop * group_size)
            out_KND[:, rows] = _window(q_KND[:, rows], caches, span, *options)
    return out_TKGD.flatten(1, 2)


def _read(
    at: Span | ShortGroup, caches: _Caches, dtype: torch.dtype, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Keys and values of a span or group, from the first key wanted on."""
    k_cache, v_cache, k_scales, v_scales = caches
    return read(at, k_cache, k_scales, dtype, first), read(at, v_cache, v_scales, dtype, first)


def _seen(
    span: Span, caches: _Caches, window: int | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, int]:
    """Keys and values that some row sees, `[Hkv, L, D]` each, and the number of the first."""
    first = 0 if window is None else max(0, span.kv_length - span.rows - window + 1)
    return *_read(span, caches, dtype, first), first


def _short(
    q_BHD: Tensor, caches: _Caches, group: ShortGroup, scale: float, window: int | None
) -> Tensor:
    """Many single rows over few keys each, in one fused call."""
    k_BKLD, v_BKLD = _read(group, caches, q_BHD.dtype)
    q_BKGD = q_BHD.unflatten(1, (k_BKLD.shape[1], -1))
    out = F.scaled_dot_product_attention(
        q_BKGD, k_BKLD, v_BKLD, attn_mask=group.mask(window, q_BHD.dtype), scale=scale
    )
    return out.flatten(1, 2)


def _window(q_KND: Tensor, caches: _Caches, span: Span, scale: float, window: int | None) -> Tensor:
    """Few rows of one sequence: `[Hkv, rows x group, D]` in, the same out."""
    k_KLD, v_KLD, first = _seen(span, caches, window, q_KND.dtype)
    mask = None
    if span.rows > 1:
        group_size = q_KND.shape[1] // span.rows
        mask = span.packed_mask(window, group_size, first, q_KND.dtype)
    out = F.scaled_dot_product_attention(
        q_KND[None], k_KLD[None], v_KLD[None], attn_mask=mask, scale=scale
    )
    return out[0]


def _long(q_RHD: Tensor, caches: _Caches, span: Span, scale: float, window: int | None) -> Tensor:
    """A chunk of a prompt: `[rows, H, D]` in, the same out."""
    k_KLD, v_KLD, first = _seen(span, caches, window, q_RHD.dtype)
    rows, heads, size = q_RHD.shape
    kv_heads, keys, _ = k_KLD.shape
    group = heads // kv_heads
    q_KGRD = q_RHD.transpose(0, 1).reshape(kv_heads, group, rows, size)
    k_KGLD = k_KLD[:, None].expand(kv_heads, group, keys, size)
    v_KGLD = v_KLD[:, None].expand(kv_heads, group, keys, v_KLD.shape[2])
    causal = rows == keys and window is None and span.tree is None
    mask = None if causal else span.mask(window)[:, first:]
    out = F.scaled_dot_product_attention(
        q_KGRD, k_KGLD, v_KGLD, attn_mask=mask, is_causal=causal, scale=scale
    )
    return out.reshape(heads, rows, -1).transpose(0, 1)


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
