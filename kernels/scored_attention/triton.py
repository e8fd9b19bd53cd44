# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
# Triton's language is untyped: in a kernel every value is a tensor of the compiler's.
"""How much each key received, in Triton: two ways, both from log-sum-exps that attention leaves.

    p_j = exp2(s_j - lse);     weight_j = sum of p_j over the query heads of the KV head

`masses` reads the logits that attention wrote, for few rows: keys are read once. `prompt_mass`
makes them anew from queries and keys, for many rows: nothing of the size rows x keys is written.

Shape suffixes: M rows of a block (tokens x heads of a group), N keys, D head size, G group.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..batch import PagedBatch
from ..common.triton import dot, find, logits, sees, stored
from ..paged_attention.ragged import Ragged, ragged
from ..paged_attention.tiles import Tiles, power_of_2
from ..paged_attention.triton import Workspace, launch
from ..quantise import as_bits


@triton.jit(do_not_specialize=["sequences", "window"])
def masses(
    scores_ptr,
    lse_ptr,
    weights_ptr,
    firsts_ptr,
    starts_ptr,
    lengths_ptr,
    cells_ptr,
    tree_starts_ptr,
    sequences,
    window,
    GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    TREES: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Weights of one row and KV head, of one tile of keys; zero where a key is not seen."""
    kv_head = tl.program_id(1)
    kv_heads = tl.num_programs(1)
    block = tl.program_id(0)
    sequence = find(starts_ptr, block, sequences, 1)
    start = tl.load(starts_ptr + sequence)
    rows = tl.load(starts_ptr + sequence + 1) - start
    row = block - start - sequence
    length = tl.load(lengths_ptr + sequence)
    begin = tl.program_id(2) * BLOCK_N
    if row >= rows or begin >= length:
        return
    n = begin + tl.arange(0, BLOCK_N)
    g = tl.arange(0, BLOCK_G)
    head_G = kv_head * GROUP + g
    # Logits were written of these keys; what of them a row does not see is -inf.
    written_N = n <= length - rows + row
    if WINDOW:
        lowest = row
        if TREES:
            lowest = tl.where(tl.load(tree_starts_ptr + sequence) >= 0, 0, row)
        written_N &= n > length - rows + lowest - window
    cell = tl.load(cells_ptr + sequence).to(tl.int64)
    heads = kv_heads * GROUP
    s_GN = tl.load(
        scores_ptr
        + (cell * heads + (row * heads + head_G).to(tl.int64) * length)[:, None]
        + n[None, :],
        mask=(g < GROUP)[:, None] & written_N[None, :],
        other=float("-inf"),
    )
    at = (tl.load(firsts_ptr + sequence) + row).to(tl.int64) * heads
    lse_G = tl.load(lse_ptr + at + head_G, mask=g < GROUP, other=0.0)
    lse_G = tl.where(lse_G == float("-inf"), 0.0, lse_G)
    weight_N = tl.sum(tl.exp2(s_GN - lse_G[:, None]), 0)
    to = cell * kv_heads + (kv_head * rows + row).to(tl.int64) * length
    tl.store(weights_ptr + to + n, weight_N, mask=n < length)


@triton.jit(do_not_specialize=["table_width", "window"])
def prompt_mass(
    q_ptr,
    k_ptr,
    lse_ptr,
    votes_ptr,
    mass_ptr,
    firsts_ptr,
    starts_ptr,
    lengths_ptr,
    keys_ptr,
    tables_ptr,
    k_scales_ptr,
    tree_starts_ptr,
    tree_words_ptr,
    tree_depths_ptr,
    table_width,
    q_row,
    q_head,
    k_page,
    k_head,
    scale_page,
    scale_head,
    scale,
    softcap,
    window,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    FP8: tl.constexpr,
    SCALED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    TREES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """What a tile of one KV head's keys received of all rows, each counting its vote.

    The tile stays; rows pass by, from the diagonal on.
    """
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    TYPE: tl.constexpr = q_ptr.dtype.element_ty
    kv_head = tl.program_id(1)
    sequence = tl.program_id(2)
    length = tl.load(lengths_ptr + sequence)
    begin = tl.program_id(0) * BLOCK_N
    if begin >= length:
        return
    start = tl.load(starts_ptr + sequence)
    rows = tl.load(starts_ptr + sequence + 1) - start
    first = tl.load(firsts_ptr + sequence)
    root = length - rows
    heads = tl.num_programs(1) * GROUP

    n = begin + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    m = tl.arange(0, BLOCK_M)
    held_N = n < length
    table_ptr = tables_ptr + sequence.to(tl.int64) * table_width
    page_N = tl.load(table_ptr + n // PAGE, mask=held_N, other=0).to(tl.int64)
    offset_N = n % PAGE
    k_ptr += kv_head.to(tl.int64) * k_head
    k_DN = tl.load(
        k_ptr + (page_N * k_page + offset_N * SIZE)[None, :] + d[:, None],
        mask=held_N[None, :] & (d < SIZE)[:, None],
        other=0,
    )
    k_DN = stored(k_DN, TYPE, FP8)
    if SCALED:
        UNIT: tl.constexpr = 256.0 if FP8 else 1.0
        scale_at_N = kv_head.to(tl.int64) * scale_head + page_N * scale_page + offset_N
        k_scale_N = tl.load(k_scales_ptr + scale_at_N, mask=held_N, other=0.0) * UNIT

    tree = -1
    words = 0
    last = rows
    if TREES:
        tree = tl.load(tree_starts_ptr + sequence)
        words = (rows + 31) // 32
    if WINDOW:
        last = tl.where(tree >= 0, rows, tl.minimum(rows, begin + BLOCK_N - 1 + window - root))
    mass_N = tl.zeros([BLOCK_N], tl.float32)
    for row in tl.range(
        tl.maximum(0, begin - root) // BLOCK_Q * BLOCK_Q, last, BLOCK_Q, num_stages=STAGES
    ):
        token_M = row + m // GROUP
        head_M = kv_head * GROUP + m % GROUP
        valid_M = (m < BLOCK_Q * GROUP) & (token_M < rows)
        at_M = (first + token_M).to(tl.int64)
        q_MD = tl.load(
            q_ptr + (at_M * q_row + head_M * q_head)[:, None] + d[None, :],
            mask=valid_M[:, None] & (d < SIZE)[None, :],
            other=0.0,
        )
        lse_M = tl.load(lse_ptr + at_M * heads + head_M, mask=valid_M, other=0.0)
        place_M = token_M
        if TREES:
            place_M = tl.load(tree_depths_ptr + start + token_M, mask=valid_M, other=0)
        s_MN = dot(q_MD, k_DN, tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        if SCALED:
            s_MN *= k_scale_N[None, :]
        seen_MN = valid_M[:, None] & sees(
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
        p_MN = tl.exp2(logits(s_MN, scale, softcap, SOFTCAP) - lse_M[:, None])
        p_MN = tl.where(seen_MN, p_MN, 0.0)
        if votes_ptr is not None:
            p_MN *= tl.load(votes_ptr + at_M, mask=valid_M, other=0.0)[:, None]
        mass_N += tl.sum(p_MN, 0)
    key = tl.load(keys_ptr + sequence).to(tl.int64) * tl.num_programs(1)
    to = key + kv_head.to(tl.int64) * length
    tl.store(mass_ptr + to + n, mass_N, mask=held_N)


_BLOCK_N = 128
"""Keys of a program of `masses`."""


def weights_of_rows(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    of: Ragged,
    out_THV: Tensor,
    workspace: Workspace | None,
    lse_TH: Tensor,
    scores: Tensor,
    weights: Tensor,
    *,
    window: int | None = None,
    **how: Any,
) -> None:
    """Attention of one class's rows, with what each row gave each key.

    scores: float32, room for `of.cell_count x H` logits. weights: float32, for
    `of.cell_count x Hkv`: of each sequence `[Hkv, rows, keys]`, one behind the other.
    """
    heads, kv_heads = q_THD.shape[1], k_cache.shape[1]
    launch(
        *(q_THD, k_cache, v_cache, of, out_THV, workspace),
        window=window,
        lse_TH=lse_TH,
        scores=scores,
        **how,
    )
    room = of.tables.shape[1] * of.page_size
    masses[of.rows + of.sequences, kv_heads, triton.cdiv(room, _BLOCK_N)](
        scores,
        lse_TH,
        weights,
        of.firsts,
        of.starts,
        of.lengths,
        of.cells,
        None if of.trees is None else of.trees.starts,
        of.sequences,
        window or 0,
        GROUP=heads // kv_heads,
        WINDOW=window is not None,
        TREES=of.trees is not None,
        BLOCK_G=power_of_2(heads // kv_heads),
        BLOCK_N=_BLOCK_N,
        num_warps=4,
    )


def mass_of_rows(
    q_THD: Tensor,
    k_cache: Tensor,
    of: Ragged,
    lse_TH: Tensor,
    mass: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    k_scales: Tensor | None = None,
    votes_T: Tensor | None = None,
    tiles: Tiles | None = None,
) -> None:
    """What the keys of one class's sequences received of all rows, given these log-sum-exps.

    mass: float32, for `of.key_count x Hkv`: of each sequence `[Hkv, keys]`. votes_T: float32 `[T]`,
    what a row's attention counts.
    """
    _, heads, size = q_THD.shape
    kv_heads, page = k_cache.shape[1:3]
    group = heads // kv_heads
    if tiles is None:
        tiles = Tiles.of_mass(group=group, size=size, dtype=q_THD.dtype)
    trees = of.trees
    assert q_THD.stride(2) == 1
    room = of.tables.shape[1] * page
    prompt_mass[triton.cdiv(room, tiles.block_n), kv_heads, of.sequences](
        q_THD,
        as_bits(k_cache),
        lse_TH,
        votes_T,
        mass,
        of.firsts,
        of.starts,
        of.lengths,
        of.keys,
        of.tables,
        k_scales,
        None if trees is None else trees.starts,
        None if trees is None else trees.words,
        None if trees is None else trees.depths,
        of.tables.shape[1],
        q_THD.stride(0),
        q_THD.stride(1),
        k_cache.stride(0),
        k_cache.stride(1),
        0 if k_scales is None else k_scales.stride(0),
        0 if k_scales is None else k_scales.stride(1),
        float(scale),
        float(softcap or 1.0),
        window or 0,
        GROUP=group,
        SIZE=size,
        PAGE=page,
        FP8=k_cache.dtype == torch.float8_e4m3fn,
        SCALED=k_scales is not None,
        SOFTCAP=softcap is not None,
        WINDOW=window is not None,
        TREES=trees is not None,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_D=power_of_2(size, 16),
        STAGES=tiles.stages,
        num_warps=tiles.warps,
    )


def paged_scored_attention(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: PagedBatch,
    *,
    votes_T: Tensor | None = None,
    split: bool = True,
    **how: Any,
) -> tuple[Tensor, list[Tensor]]:
    """Attention as `paged_attention`, and what keys received, of each sequence that has rows.

    Without votes `[Hkv, rows, keys]`; with them `[Hkv, keys]`, the rows summed by their votes.
    """
    count, heads, _ = q_THD.shape
    kv_heads, value_size, device = k_cache.shape[1], v_cache.shape[3], q_THD.device
    q_THD = q_THD if q_THD.stride(2) == 1 else q_THD.contiguous()
    out = torch.empty(count, heads, value_size, dtype=q_THD.dtype, device=device)
    lse = torch.empty(count, heads, device=device)
    found: dict[int, Tensor] = {}
    for of in ragged(batch, split=split):
        caches = q_THD, k_cache, v_cache, of, out, Workspace.of(of, heads, value_size, device)
        if votes_T is None:
            scores = torch.empty(of.cell_count * heads, device=device)
            flat = torch.empty(of.cell_count * kv_heads, device=device)
            weights_of_rows(*caches, lse, scores, flat, **how)
        else:
            launch(*caches, lse_TH=lse, **how)
            flat = torch.empty(of.key_count * kv_heads, device=device)
            of_keys = {k: v for k, v in how.items() if k not in ("sinks_H", "v_scales")}
            mass_of_rows(q_THD, k_cache, of, lse, flat, votes_T=votes_T, **of_keys)
        begin = 0
        for i in of.indices:
            rows, keys = batch.query_starts[i + 1] - batch.query_starts[i], batch.kv_lengths[i]
            shape = (kv_heads, rows, keys) if votes_T is None else (kv_heads, keys)
            size = math.prod(shape)
            found[i] = flat[begin : begin + size].view(shape)
            begin += size
    return out, [found[i] for i in sorted(found)]
