# pyright: basic, reportAttributeAccessIssue=false, reportIndexIssue=false
# Triton's language is untyped: in a kernel every value is a tensor of the compiler's.
"""`merge_splits`: what splits of the keys gave, weighted by their base-2 log-sum-exps.

    out = sum_i exp2(lse_i - m) out_i / sum_i exp2(lse_i - m);   m = max_i lse_i
    lse = m + log2(sum_i exp2(lse_i - m))

Shape suffixes: S splits, V head size of the values.
"""

import triton
import triton.language as tl

from ..common.triton import find, rounded


@triton.jit(do_not_specialize=["sequences"])
def merge(
    part_ptr,
    part_lse_ptr,
    out_ptr,
    lse_ptr,
    firsts_ptr,
    starts_ptr,
    lengths_ptr,
    parts_ptr,
    sequences,
    SPLIT: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One row and head: its splits weighted by exp2(lse - the whole's lse); none gives zero."""
    heads = tl.num_programs(1)
    head = tl.program_id(1)
    block = tl.program_id(0)
    sequence = find(starts_ptr, block, sequences, 1)
    start = tl.load(starts_ptr + sequence)
    rows = tl.load(starts_ptr + sequence + 1) - start
    row = block - start - sequence
    if row >= rows:
        return
    splits = tl.maximum(1, tl.cdiv(tl.load(lengths_ptr + sequence), SPLIT))
    first_part = tl.load(parts_ptr + sequence).to(tl.int64) + row
    e = tl.arange(0, BLOCK_V)
    most = -float("inf")
    total = 0.0
    acc_V = tl.zeros([BLOCK_V], tl.float32)
    for begin in range(0, splits, BLOCK_S):
        split_S = begin + tl.arange(0, BLOCK_S)
        here_S = split_S < splits
        at_S = (first_part + split_S * rows) * heads + head
        lse_S = tl.load(part_lse_ptr + at_S, mask=here_S, other=float("-inf"))
        part_SV = tl.load(
            part_ptr + (at_S * VALUE_SIZE)[:, None] + e[None, :],
            mask=here_S[:, None] & (e < VALUE_SIZE)[None, :],
            other=0.0,
        )
        new_most = tl.maximum(most, tl.max(lse_S, 0))
        base = tl.where(new_most == -float("inf"), 0.0, new_most)
        weight_S = tl.exp2(lse_S - base)
        kept = tl.exp2(most - base)
        total = total * kept + tl.sum(weight_S, 0)
        acc_V = acc_V * kept + tl.sum(part_SV * weight_S[:, None], 0)
        most = new_most
    some = total > 0.0
    total = tl.where(some, total, 1.0)
    at = (tl.load(firsts_ptr + sequence) + row).to(tl.int64) * heads + head
    out_V = rounded(acc_V / total, out_ptr.dtype.element_ty)
    tl.store(out_ptr + at * VALUE_SIZE + e, out_V, mask=e < VALUE_SIZE)
    if lse_ptr is not None:
        tl.store(lse_ptr + at, tl.where(some, most + tl.log2(total), -float("inf")))
