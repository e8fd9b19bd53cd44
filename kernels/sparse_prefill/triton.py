# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# Triton's language is untyped: in a kernel every value is a tensor of the compiler's.
"""`sparse_prefill` in Triton: one kernel for all forms, over lists of queries, columns and tiles.

    s_j = log2(e) * scale * q . k_j;   m = max(s_j);   p_j = exp2(s_j - m)
    out = sum_j p_j v_j / sum_j p_j    over the columns j of an equal label that are not after q

A program takes BLOCK_M queries of one KV head in the lists' order and visits the tiles of columns
that its list names. Which of a tile a query sees is by original positions and by labels.

Shape suffixes: M queries of a program, N columns of a tile, D head size, V of the values.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..batch import PagedBatch
from ..common.triton import LOG2_E, dot, factor, rounded
from ..paged_attention.tiles import Tiles, power_of_2
from ..paged_attention.triton import paged_attention
from ..quantise import read
from .labels import NO_KEY, NO_QUERY, Labels
from .lists import Lists
from .merge import merged

_NO_QUERY: tl.constexpr = tl.constexpr(NO_QUERY)
_NO_KEY: tl.constexpr = tl.constexpr(NO_KEY)


@triton.jit(do_not_specialize=["entries", "keys", "tiles", "root", "recent"])
def attend_lists(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    queries_ptr,
    query_labels_ptr,
    columns_ptr,
    column_labels_ptr,
    tiles_ptr,
    counts_ptr,
    entries,
    keys,
    tiles,
    root,
    recent,
    q_row,
    q_head,
    k_head,
    k_key,
    v_head,
    v_key,
    scale,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    OWN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Queries of one block over its tiles; OWN: and each over the key at its own position."""
    TYPE: tl.constexpr = q_ptr.dtype.element_ty
    block = tl.program_id(0)
    kv_head = tl.program_id(1).to(tl.int64)
    list_at = kv_head * tl.num_programs(0) + block
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_V)
    there_M = m < entries
    entry_M = tl.load(queries_ptr + kv_head * entries + m, mask=there_M, other=0)
    label_M = tl.load(query_labels_ptr + kv_head * entries + m, mask=there_M, other=_NO_QUERY)
    here_M = there_M & (label_M != _NO_QUERY)
    token_M = entry_M // GROUP
    place_M = root + token_M
    head_M = kv_head * GROUP + entry_M % GROUP
    q_MD = tl.load(
        q_ptr + (token_M.to(tl.int64) * q_row + head_M * q_head)[:, None] + d[None, :],
        mask=here_M[:, None] & (d < SIZE)[None, :],
        other=0.0,
    )
    k_ptr += kv_head * k_head
    v_ptr += kv_head * v_head
    columns_ptr += kv_head * keys
    column_labels_ptr += kv_head * keys
    scale *= LOG2_E

    # The place of the last key that a query sees among those of its label.
    last_M = place_M - recent
    if OWN:
        last_M = tl.minimum(last_M, place_M - 1)
        k_MD = tl.load(
            k_ptr + (place_M.to(tl.int64) * k_key)[:, None] + d[None, :],
            mask=here_M[:, None] & (d < SIZE)[None, :],
            other=0.0,
        )
        own_M = tl.sum(q_MD.to(tl.float32) * k_MD.to(tl.float32), 1) * scale
        max_M = own_M
        sum_M = here_M.to(tl.float32)
    else:
        max_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
        sum_M = tl.zeros([BLOCK_M], tl.float32)
    acc_MV = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)

    count = tl.load(counts_ptr + list_at)
    tiles_ptr += list_at * tiles
    for i in tl.range(0, count, num_stages=STAGES):
        n = tl.load(tiles_ptr + i) * BLOCK_N + tl.arange(0, BLOCK_N)
        held_N = n < keys
        column_N = tl.load(columns_ptr + n, mask=held_N, other=0)
        label_N = tl.load(column_labels_ptr + n, mask=held_N, other=_NO_KEY)
        k_DN = tl.load(
            k_ptr + (column_N.to(tl.int64) * k_key)[None, :] + d[:, None],
            mask=held_N[None, :] & (d < SIZE)[:, None],
            other=0.0,
        )
        v_NV = tl.load(
            v_ptr + (column_N.to(tl.int64) * v_key)[:, None] + e[None, :],
            mask=held_N[:, None] & (e < VALUE_SIZE)[None, :],
            other=0.0,
        )
        s_MN = dot(q_MD, k_DN, tl.zeros([BLOCK_M, BLOCK_N], tl.float32)) * scale
        seen_MN = (label_M[:, None] == label_N[None, :]) & (column_N[None, :] <= last_M[:, None])
        s_MN = tl.where(seen_MN, s_MN, float("-inf"))
        new_max_M = tl.maximum(max_M, tl.max(s_MN, 1))
        base_M = tl.where(new_max_M == float("-inf"), 0.0, new_max_M)
        p_MN = tl.exp2(s_MN - base_M[:, None])
        kept_M = tl.exp2(max_M - base_M)
        sum_M = sum_M * kept_M + tl.sum(p_MN, 1)
        acc_MV = dot(factor(p_MN, TYPE), v_NV, acc_MV * kept_M[:, None])
        max_M = new_max_M

    if OWN:
        v_MV = tl.load(
            v_ptr + (place_M.to(tl.int64) * v_key)[:, None] + e[None, :],
            mask=here_M[:, None] & (e < VALUE_SIZE)[None, :],
            other=0.0,
        )
        acc_MV += tl.exp2(own_M - max_M)[:, None] * v_MV.to(tl.float32)
    out_MV = acc_MV / tl.where(sum_M > 0.0, sum_M, 1.0)[:, None]
    at_M = token_M.to(tl.int64) * (tl.num_programs(1) * GROUP) + head_M
    tl.store(
        out_ptr + (at_M * VALUE_SIZE)[:, None] + e[None, :],
        rounded(out_MV, TYPE),
        mask=there_M[:, None] & (e < VALUE_SIZE)[None, :],
    )
    if lse_ptr is not None:
        some_M = sum_M > 0.0
        lse_M = tl.where(some_M, max_M + tl.log2(tl.where(some_M, sum_M, 1.0)), float("-inf"))
        tl.store(lse_ptr + at_M, lse_M, mask=there_M)


def launch(
    q_THD: Tensor,
    k_KLD: Tensor,
    v_KLD: Tensor,
    lists: Lists,
    out_THV: Tensor,
    *,
    scale: float,
    lse_TH: Tensor | None = None,
) -> None:
    """Every row of `out_THV`, those of dropped queries too, which are 0.

    Never waits for the device; what is launched depends on shapes alone. lse_TH: float32, for
    base-2 log-sum-exps.
    """
    rows, heads, size = q_THD.shape
    kv_heads, keys, value_size = v_KLD.shape
    entries, blocks, tiles = lists.queries_KE.shape[1], *lists.tiles_KBC.shape[1:]
    assert (rows, heads) == (entries // lists.group, kv_heads * lists.group)
    assert (k_KLD.shape[1], lists.root) == (keys, keys - rows)
    listed = lists.queries_KE, lists.query_labels_KE, lists.columns_KL, lists.column_labels_KL
    assert all(one.is_contiguous() for one in (*listed, lists.tiles_KBC, lists.counts_KB, out_THV))
    assert (q_THD.stride(2), k_KLD.stride(2), v_KLD.stride(2)) == (1, 1, 1)
    if not rows:
        return
    attend_lists[blocks, kv_heads](
        q_THD,
        k_KLD,
        v_KLD,
        out_THV,
        lse_TH,
        *listed,
        lists.tiles_KBC,
        lists.counts_KB,
        entries,
        keys,
        tiles,
        lists.root,
        lists.recent,
        q_THD.stride(0),
        q_THD.stride(1),
        k_KLD.stride(0),
        k_KLD.stride(1),
        v_KLD.stride(0),
        v_KLD.stride(1),
        float(scale),
        GROUP=lists.group,
        SIZE=size,
        VALUE_SIZE=value_size,
        OWN=lists.own,
        BLOCK_M=lists.tiles.block_m,
        BLOCK_N=lists.tiles.block_n,
        BLOCK_D=power_of_2(size, 16),
        BLOCK_V=power_of_2(value_size, 16),
        STAGES=lists.tiles.stages,
        num_warps=lists.tiles.warps,
    )


def sparse_prefill(
    q_THD: Tensor,
    k_KLD: Tensor,
    v_KLD: Tensor,
    labels: Labels,
    *,
    scale: float,
    tiles: Tiles | None = None,
    lse_TH: Tensor | None = None,
) -> Tensor:
    """The reference's signature and result, from this kernel."""
    rows, heads, size = q_THD.shape
    if tiles is None:
        larger = max(size, v_KLD.shape[2])
        tiles = Tiles.of(split=False, group=1, size=larger, dtype=q_THD.dtype)
    out = torch.empty(rows, heads, v_KLD.shape[2], dtype=q_THD.dtype, device=q_THD.device)
    launch(q_THD, k_KLD, v_KLD, Lists.of(labels, tiles), out, scale=scale, lse_TH=lse_TH)
    return out


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
    split: bool = True,
) -> Tensor:
    """The reference's signature and result: this kernel by labels, `../paged_attention` near by."""
    (span,) = batch.spans
    k_KLD = read(span, k_cache, k_scales, q_THD.dtype)
    v_KLD = read(span, v_cache, v_scales, q_THD.dtype)
    far_lse_TH, near_lse_TH = q_THD.new_empty(2, *q_THD.shape[:2], dtype=torch.float32)
    far_THV = sparse_prefill(q_THD, k_KLD, v_KLD, labels, scale=scale, lse_TH=far_lse_TH)
    near_THV = paged_attention(
        q_THD,
        k_cache,
        v_cache,
        batch,
        scale=scale,
        split=split,
        window=labels.recent,
        k_scales=k_scales,
        v_scales=v_scales,
        lse_TH=near_lse_TH,
    )
    return merged(far_THV, far_lse_TH, near_THV, near_lse_TH)
