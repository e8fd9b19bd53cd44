# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# Triton's language is untyped: in a kernel every value is a tensor of the compiler's.
"""`paged_attention` in Triton: one ragged kernel for prompt chunks, decoding rows and drafts.

    s_j = log2(e) * softcap(scale * q . k_j);   m = max(s_j, sink);   p_j = exp2(s_j - m)
    out = sum_j p_j v_j / l;   l = sum_j p_j + exp2(sink - m);   lse = m + log2(l)

A program takes BLOCK_M rows, tokens x the query heads of one KV head, over one split of the keys.
Splits are merged by their base-2 log-sum-exps, all in float32. Tiles of keys begin at multiples of
BLOCK_N, and one that a row does not see changes none of its bits.

Shape suffixes: M rows of a program, N keys of a tile, D head size, S splits.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..batch import PagedBatch
from ..common.triton import LOG2_E, dot, factor, find, logits, rounded, sees, stored
from ..merge_splits.triton import merge
from ..quantise import as_bits
from .ragged import SPLIT_TOKENS, Ragged, ragged
from .tiles import Tiles, power_of_2


@triton.jit(do_not_specialize=["sequences", "table_width", "window"])
def attend(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    firsts_ptr,
    starts_ptr,
    lengths_ptr,
    tables_ptr,
    parts_ptr,
    k_scales_ptr,
    v_scales_ptr,
    sinks_ptr,
    scores_ptr,
    cells_ptr,
    tree_starts_ptr,
    tree_words_ptr,
    tree_depths_ptr,
    sequences,
    table_width,
    q_row,
    q_head,
    k_page,
    k_head,
    v_page,
    v_head,
    scale_page,
    scale_head,
    scale,
    softcap,
    window,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    SPLIT: tl.constexpr,
    PARTIAL: tl.constexpr,
    FP8: tl.constexpr,
    SCALED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    TREES: tl.constexpr,
    SCORES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Rows of one block over the keys of one split (SPLIT; 0: all of them).

    PARTIAL: writes float32 partials and their log-sum-exps; else results, in the rows' dtype.
    SCORES: writes each row's logits too, of the keys up to the block's last row.
    """
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    TYPE: tl.constexpr = q_ptr.dtype.element_ty
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    sequence = find(starts_ptr, block, sequences, BLOCK_Q)
    start = tl.load(starts_ptr + sequence)
    rows = tl.load(starts_ptr + sequence + 1) - start
    row = (block - (start // BLOCK_Q + sequence)) * BLOCK_Q
    length = tl.load(lengths_ptr + sequence)
    if row >= rows or (split > 0 and split * SPLIT >= length):
        return
    root = length - rows

    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    e = tl.arange(0, BLOCK_V)
    token_M = row + m // GROUP
    head_M = kv_head * GROUP + m % GROUP
    valid_M = (m < BLOCK_Q * GROUP) & (token_M < rows)
    at_M = (tl.load(firsts_ptr + sequence) + token_M).to(tl.int64)
    q_MD = tl.load(
        q_ptr + (at_M * q_row + head_M * q_head)[:, None] + d[None, :],
        mask=valid_M[:, None] & (d < SIZE)[None, :],
        other=0.0,
    )

    # Of a draft's row its depth, of any other one its number, counts from the root.
    place_M = token_M
    tree = -1
    words = 0
    lowest = row
    if TREES:
        tree = tl.load(tree_starts_ptr + sequence)
        place_M = tl.load(tree_depths_ptr + start + token_M, mask=valid_M, other=0)
        words = (rows + 31) // 32
        if tree >= 0:
            lowest = 0
    low = 0
    high = root + tl.minimum(row + BLOCK_Q, rows)
    if WINDOW:
        low = tl.maximum(0, root + lowest - window + 1) // BLOCK_N * BLOCK_N
    if SPLIT > 0:
        low = tl.maximum(low, split * SPLIT)
        high = tl.minimum(high, split * SPLIT + SPLIT)

    max_M = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sum_M = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:
        sink_M = tl.load(sinks_ptr + head_M, mask=valid_M, other=0.0).to(tl.float32) * LOG2_E
        max_M = tl.where(split == 0, sink_M, max_M)
        sum_M = tl.where(split == 0, 1.0, sum_M)
    acc_MV = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    heads = tl.num_programs(1) * GROUP
    if SCORES:
        cell = tl.load(cells_ptr + sequence).to(tl.int64) * heads
        scores_at_M = cell + (token_M * heads + head_M).to(tl.int64) * length
    table_ptr = tables_ptr + sequence.to(tl.int64) * table_width
    k_ptr += kv_head.to(tl.int64) * k_head
    v_ptr += kv_head.to(tl.int64) * v_head
    k_scales_at = kv_head.to(tl.int64) * scale_head

    for begin in tl.range(low, high, BLOCK_N, num_stages=STAGES):
        n = begin + tl.arange(0, BLOCK_N)
        held_N = n < high
        page_N = tl.load(table_ptr + n // PAGE, mask=held_N, other=0).to(tl.int64)
        offset_N = n % PAGE
        k_DN = tl.load(
            k_ptr + (page_N * k_page + offset_N * SIZE)[None, :] + d[:, None],
            mask=held_N[None, :] & (d < SIZE)[:, None],
            other=0,
        )
        v_NV = tl.load(
            v_ptr + (page_N * v_page + offset_N * VALUE_SIZE)[:, None] + e[None, :],
            mask=held_N[:, None] & (e < VALUE_SIZE)[None, :],
            other=0,
        )
        s_MN = dot(q_MD, stored(k_DN, TYPE, FP8), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        if SCALED:
            scale_at_N = k_scales_at + page_N * scale_page + offset_N
            UNIT: tl.constexpr = 256.0 if FP8 else 1.0
            k_scale_N = tl.load(k_scales_ptr + scale_at_N, mask=held_N, other=0.0) * UNIT
            v_scale_N = tl.load(v_scales_ptr + scale_at_N, mask=held_N, other=0.0) * UNIT
            s_MN *= k_scale_N[None, :]
            # Rounded to the rows' dtype, as what is stored is everywhere.
            v_NV = factor(stored(v_NV, tl.float32, FP8) * v_scale_N[:, None], TYPE)
        else:
            v_NV = stored(v_NV, TYPE, FP8)
        seen_MN = sees(
            n,
            held_N,
            token_M,
            place_M,
            valid_M,
            root,
            start,
            words,
            tree,
            tree_words_ptr,
            tree_depths_ptr,
            window,
            WINDOW,
            TREES,
        )
        s_MN = tl.where(seen_MN, logits(s_MN, scale, softcap, SOFTCAP), float("-inf"))
        if SCORES:
            tl.store(
                scores_ptr + scores_at_M[:, None] + n[None, :],
                s_MN,
                mask=valid_M[:, None] & held_N[None, :],
            )

        new_max_M = tl.maximum(max_M, tl.max(s_MN, 1))
        base_M = tl.where(new_max_M == float("-inf"), 0.0, new_max_M)
        p_MN = tl.exp2(s_MN - base_M[:, None])
        kept_M = tl.exp2(max_M - base_M)
        sum_M = sum_M * kept_M + tl.sum(p_MN, 1)
        acc_MV = dot(factor(p_MN, TYPE), v_NV, acc_MV * kept_M[:, None])
        max_M = new_max_M

    some_M = sum_M > 0.0
    sum_M = tl.where(some_M, sum_M, 1.0)
    out_MV = acc_MV / sum_M[:, None]
    lse_M = tl.where(some_M, max_M + tl.log2(sum_M), float("-inf"))
    if PARTIAL:
        at_M = tl.load(parts_ptr + sequence).to(tl.int64) + split * rows + token_M
    else:
        out_MV = rounded(out_MV, TYPE)
    at_M = at_M * heads + head_M
    written_MV = valid_M[:, None] & (e < VALUE_SIZE)[None, :]
    tl.store(out_ptr + (at_M * VALUE_SIZE)[:, None] + e[None, :], out_MV, mask=written_MV)
    if lse_ptr is not None:
        tl.store(lse_ptr + at_M, lse_M, mask=valid_M)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Partial results of a class's splits: float32 `[P, H, Dv]`, and lse `[P, H]`."""

    out: Tensor
    lse: Tensor

    @classmethod
    def of(cls, ragged: Ragged, heads: int, value_size: int, device: torch.device) -> "Workspace":
        """As much as `launch` needs."""
        shape = ragged.part_count, heads
        return cls(
            out=torch.empty(*shape, value_size, dtype=torch.float32, device=device),
            lse=torch.empty(shape, dtype=torch.float32, device=device),
        )


def launch(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    of: Ragged,
    out_THV: Tensor,
    workspace: Workspace | None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    lse_TH: Tensor | None = None,
    scores: Tensor | None = None,
    tiles: Tiles | None = None,
) -> None:
    """Attention of one class's rows, into theirs of `out_THV`; arguments as the reference has them.

    Never waits for the device; what is launched depends on shapes alone.
    workspace: needed where `of.splits` is above 1. lse_TH: float32, for base-2 log-sum-exps.
    scores: float32 `[of.cell_count x H]`, for logits to base 2 (`../scored_attention`).
    """
    _, heads, size = q_THD.shape
    kv_heads, page, value_size = v_cache.shape[1:]
    group = heads // kv_heads
    assert q_THD.stride(2) == 1
    assert out_THV.is_contiguous()
    assert (k_cache.stride()[2:], v_cache.stride()[2:]) == ((size, 1), (value_size, 1))
    if tiles is None:
        larger = max(size, value_size)
        tiles = Tiles.of(split=of.splits > 0, group=group, size=larger, dtype=q_THD.dtype)
    partial = of.splits > 1
    out, lse = out_THV, lse_TH
    if partial:
        assert workspace is not None
        out, lse = workspace.out, workspace.lse
    trees = of.trees
    blocks = of.rows // (tiles.block_m // group) + of.sequences
    attend[blocks, kv_heads, max(1, of.splits)](
        q_THD,
        as_bits(k_cache),
        as_bits(v_cache),
        out,
        lse,
        of.firsts,
        of.starts,
        of.lengths,
        of.tables,
        of.parts,
        k_scales,
        v_scales,
        sinks_H,
        scores,
        None if scores is None else of.cells,
        None if trees is None else trees.starts,
        None if trees is None else trees.words,
        None if trees is None else trees.depths,
        of.sequences,
        of.tables.shape[1],
        q_THD.stride(0),
        q_THD.stride(1),
        k_cache.stride(0),
        k_cache.stride(1),
        v_cache.stride(0),
        v_cache.stride(1),
        0 if k_scales is None else k_scales.stride(0),
        0 if k_scales is None else k_scales.stride(1),
        float(scale),
        float(softcap or 1.0),
        window or 0,
        GROUP=group,
        SIZE=size,
        VALUE_SIZE=value_size,
        PAGE=page,
        SPLIT=SPLIT_TOKENS if of.splits else 0,
        PARTIAL=partial,
        FP8=k_cache.dtype == torch.float8_e4m3fn,
        SCALED=k_scales is not None,
        SOFTCAP=softcap is not None,
        WINDOW=window is not None,
        SINKS=sinks_H is not None,
        TREES=trees is not None,
        SCORES=scores is not None,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_D=power_of_2(size, 16),
        BLOCK_V=power_of_2(value_size, 16),
        STAGES=tiles.stages,
        num_warps=tiles.warps,
    )
    if partial:
        assert workspace is not None
        put_together(workspace, of, out_THV, lse_TH)


def put_together(
    workspace: Workspace, of: Ragged, out_THV: Tensor, lse_TH: Tensor | None = None
) -> None:
    """Merge the splits of one class's rows into theirs of `out_THV` (`../merge_splits`)."""
    heads, value_size = out_THV.shape[1:]
    merge[of.rows + of.sequences, heads](
        workspace.out,
        workspace.lse,
        out_THV,
        lse_TH,
        of.firsts,
        of.starts,
        of.lengths,
        of.parts,
        of.sequences,
        SPLIT=SPLIT_TOKENS,
        VALUE_SIZE=value_size,
        BLOCK_S=8,
        BLOCK_V=power_of_2(value_size),
        num_warps=2,
    )


def paged_attention(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: PagedBatch,
    *,
    split: bool = True,
    **how: Any,
) -> Tensor:
    """The reference's signature and result, from this kernel: one launch a class of sequences.

    split: programs may share the keys of a window's rows (`plans`).
    """
    heads, value_size = q_THD.shape[1], v_cache.shape[3]
    out = torch.empty(*q_THD.shape[:2], value_size, dtype=q_THD.dtype, device=q_THD.device)
    q_THD = q_THD if q_THD.stride(2) == 1 else q_THD.contiguous()
    for one in ragged(batch, split=split):
        workspace = Workspace.of(one, heads, value_size, q_THD.device) if one.splits > 1 else None
        launch(q_THD, k_cache, v_cache, one, out, workspace, **how)
    return out
