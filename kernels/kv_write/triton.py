# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
# Triton's language is untyped: in a kernel every value is a tensor of the compiler's.
"""`kv_write` in Triton: keys and values to their slots, in 8 bits with a scale where caches are.

    scale = max_i |x_i| / largest;   e_i = rounded(x_i / scale)

What is written has the same bits as the reference's: divisions are IEEE's, roundings to even.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..common.triton import rounded
from ..quantise import LARGEST, LEAST_SCALE, as_bits

_TO_INTEGER: tl.constexpr = tl.constexpr(12582912.0)
"""1.5 x 2^23: what is added to it loses its fraction, to nearest even."""


@triton.jit
def _int8(x):
    """float32 of at most 127 as the nearest whole number, ties to even."""
    return ((x + _TO_INTEGER) - _TO_INTEGER).to(tl.int8)


@triton.jit
def _e4m3(x):
    """float32 of at most 448 as the bytes of e4m3, to nearest even."""
    bits = x.to(tl.uint32, bitcast=True)
    size = tl.abs(x)
    # Below 2^-6 numbers are multiples of 2^-9; above, the exponent's bias changes from 127 to 7.
    small = (size * 512.0 + _TO_INTEGER).to(tl.uint32, bitcast=True) & 0xF
    large = bits & 0x7FFFFFFF
    large = ((large + 0x7FFFF + ((large >> 20) & 1)) >> 20) - (120 << 3)
    return (tl.where(size < 0.015625, small, large) | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _put(
    rows_ptr,
    cache_ptr,
    scales_ptr,
    row_at,
    cache_at,
    scale_at,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    d = tl.arange(0, BLOCK)
    x_D = tl.load(rows_ptr + row_at + d, mask=d < SIZE, other=0.0)
    TYPE: tl.constexpr = cache_ptr.dtype.element_ty
    if LARGEST > 0.0:
        x_D = x_D.to(tl.float32)
        scale = tl.maximum(tl.div_rn(tl.max(tl.abs(x_D), 0), LARGEST), LEAST)
        tl.store(scales_ptr + scale_at, scale)
        x_D = tl.div_rn(x_D, scale)
        x_D = _int8(x_D) if tl.int8 == TYPE else _e4m3(x_D)
    elif rows_ptr.dtype.element_ty != TYPE:
        x_D = rounded(x_D.to(tl.float32), TYPE)
    tl.store(cache_ptr + cache_at + d, x_D, mask=d < SIZE)


@triton.jit(do_not_specialize=["slots_row", "slots_head"])
def write(
    k_ptr,
    v_ptr,
    k_cache_ptr,
    v_cache_ptr,
    k_scales_ptr,
    v_scales_ptr,
    slots_ptr,
    slots_row,
    slots_head,
    k_row,
    k_head,
    v_row,
    v_head,
    k_page,
    k_cache_head,
    v_page,
    v_cache_head,
    scale_page,
    scale_head,
    LARGEST: tl.constexpr,
    LEAST: tl.constexpr,
    PAGE: tl.constexpr,
    SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One row of one KV head; `slots_head` is 0 where all heads share a slot.

    A slot below 0 is nowhere: rows that pad a batch write nothing.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots_ptr + row * slots_row + head * slots_head)
    if slot < 0:
        return
    page = slot // PAGE
    offset = slot % PAGE
    scale_at = page * scale_page + head * scale_head + offset
    k_at = page * k_page + head * k_cache_head + offset * SIZE
    v_at = page * v_page + head * v_cache_head + offset * VALUE_SIZE
    k_row_at = row * k_row + head * k_head
    v_row_at = row * v_row + head * v_head
    _put(k_ptr, k_cache_ptr, k_scales_ptr, k_row_at, k_at, scale_at, LARGEST, LEAST, SIZE, BLOCK_D)
    _put(
        v_ptr,
        v_cache_ptr,
        v_scales_ptr,
        v_row_at,
        v_at,
        scale_at,
        LARGEST,
        LEAST,
        VALUE_SIZE,
        BLOCK_V,
    )


def kv_write(
    k_THD: Tensor,
    v_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    *,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
) -> None:
    """The reference's signature and effect. slots: int64 `[T]`, or `[T, Hkv]`: one for each head.

    Never waits for the device. Caches are stored head by head.
    """
    k_THD, v_THD = (x if x.stride(2) == 1 else x.contiguous() for x in (k_THD, v_THD))
    count, kv_heads, size = k_THD.shape
    page, value_size = v_cache.shape[2:]
    assert (k_cache.stride()[2:], v_cache.stride()[2:]) == ((size, 1), (value_size, 1))
    if count == 0:
        return
    write[count, kv_heads](
        k_THD,
        v_THD,
        as_bits(k_cache),
        as_bits(v_cache),
        k_scales,
        v_scales,
        slots,
        slots.stride(0),
        slots.stride(1) if slots.ndim == 2 else 0,
        k_THD.stride(0),
        k_THD.stride(1),
        v_THD.stride(0),
        v_THD.stride(1),
        k_cache.stride(0),
        k_cache.stride(1),
        v_cache.stride(0),
        v_cache.stride(1),
        0 if k_scales is None else k_scales.stride(0),
        0 if k_scales is None else k_scales.stride(1),
        LARGEST=LARGEST[k_cache.dtype] if k_scales is not None else 0.0,
        LEAST=LEAST_SCALE,
        PAGE=page,
        SIZE=size,
        VALUE_SIZE=value_size,
        BLOCK_D=triton.next_power_of_2(size),
        BLOCK_V=triton.next_power_of_2(value_size),
        num_warps=1,
    )
