# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportOperatorIssue=false
# Triton's language is untyped: in a kernel every value is a tensor of the compiler's.
"""`evict` in Triton: a program for each context and head finds the victim (see README.md)."""

import triton
import triton.language as tl
from torch import Tensor

_NONE: tl.constexpr = tl.constexpr(2**31 - 1)
_BLOCK = 1024
"""Of any number of slots: one compilation serves all."""


@triton.jit(do_not_specialize=["slots", "table_width"])
def choose(
    mass_ptr,
    positions_ptr,
    lengths_ptr,
    recent_ptr,
    sink_ptr,
    tables_ptr,
    slots_ptr,
    slots,
    table_width,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Masses and positions of one head in blocks, the best of each against those before."""
    context = tl.program_id(0)
    row = context * tl.num_programs(1) + tl.program_id(1)
    length = tl.load(lengths_ptr + context)
    recent = tl.load(recent_ptr + context)
    sink = tl.load(sink_ptr + context)
    mass_ptr += row.to(tl.int64) * slots
    positions_ptr += row.to(tl.int64) * slots
    lowest = float("inf")
    oldest = _NONE
    victim = 0
    for begin in range(0, slots, BLOCK):
        s = begin + tl.arange(0, BLOCK)
        position = tl.load(positions_ptr + s, mask=s < slots, other=_NONE)
        score = tl.load(mass_ptr + s, mask=s < slots, other=float("inf"))
        stays = (position >= length - recent) | ((position < sink) & (position >= 0))
        score = tl.where(position < 0, -1.0, tl.where(stays, float("inf"), score))
        least = tl.min(score, 0)
        position = tl.where(score == least, position, _NONE)
        first = tl.min(position, 0)
        slot = tl.min(tl.where(position == first, s, _NONE), 0)
        better = (least < lowest) | ((least == lowest) & (first < oldest))
        lowest = tl.where(better, least, lowest)
        oldest = tl.where(better, first, oldest)
        victim = tl.where(better, slot, victim)
    tl.store(positions_ptr + victim, length)
    tl.store(mass_ptr + victim, 0.0)
    page = tl.load(tables_ptr + context.to(tl.int64) * table_width + victim // PAGE).to(tl.int64)
    tl.store(slots_ptr + row, page * PAGE + victim % PAGE)


def evict(
    mass_BKS: Tensor,
    positions_BKS: Tensor,
    lengths_B: Tensor,
    recent_B: Tensor,
    sink_B: Tensor,
    tables_BW: Tensor,
    slots_BK: Tensor,
    *,
    page_size: int,
) -> None:
    """The reference's signature and effect. Never waits for the device; all are contiguous."""
    contexts, heads, slots = mass_BKS.shape
    tensors = mass_BKS, positions_BKS, lengths_B, recent_B, sink_B, tables_BW, slots_BK
    assert all(tensor.is_contiguous() for tensor in tensors)
    choose[contexts, heads](
        *tensors,
        slots,
        tables_BW.shape[1],
        PAGE=page_size,
        BLOCK=_BLOCK,
        num_warps=4,
    )
