# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
# Triton's language is untyped: in a kernel every value is a tensor of the compiler's.
"""y = x W^T + b with weights in planes of codes (planes.py), which are decoded in registers.

Weights are rounded to the rows' type, as when they are dequantised once and for all; products are
added up in float32. Shape suffixes: M rows, N outputs, K inputs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton import INTERPRETING, dot, rounded
from .planes import Planes

_BLOCK_N = 64
_BLOCK_K = 64
"""Inputs of a tile."""
_FEW_ROWS = 16
_MANY_ROWS = 64


@triton.jit
def decoded(
    codes_KN,
    at_KN,
    here_KN,
    scales_ptr,
    zeros_ptr,
    leasts_ptr,
    table_ptr,
    E4M3: tl.constexpr,
    TYPE: tl.constexpr,
):
    """Weights of codes; `at_KN`: where what they share is."""
    if table_ptr is not None:
        w_KN = tl.load(table_ptr + codes_KN)
    elif E4M3:
        bits_KN = codes_KN.to(tl.int16)
        bits_KN = ((bits_KN & 0x80) << 8) | ((bits_KN & 0x7F) << 7)
        w_KN = bits_KN.to(tl.float16, bitcast=True).to(tl.float32)
    else:
        w_KN = codes_KN.to(tl.float32)
    if zeros_ptr is not None:
        w_KN -= tl.load(zeros_ptr + at_KN, mask=here_KN, other=0.0).to(tl.float32)
    w_KN *= tl.load(scales_ptr + at_KN, mask=here_KN, other=0.0).to(tl.float32)
    if leasts_ptr is not None:
        w_KN += tl.load(leasts_ptr + at_KN, mask=here_KN, other=0.0).to(tl.float32)
    w_KN = rounded(w_KN, TYPE)
    if INTERPRETING:
        return w_KN.to(tl.float32)
    return w_KN


@triton.jit(do_not_specialize=["rows"])
def multiply(
    x_ptr,
    codes_ptr,
    scales_ptr,
    zeros_ptr,
    leasts_ptr,
    table_ptr,
    bias_ptr,
    out_ptr,
    rows,
    size,
    columns,
    SHARED: tl.constexpr,
    PAIRED: tl.constexpr,
    E4M3: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile, BLOCK_K bytes of each output's codes at a time.

    x `[rows, size]` and out `[rows, columns]` are contiguous.
    """
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    here_M, here_N = m < rows, n < columns
    EACH: tl.constexpr = PAIRED + 1
    TYPE: tl.constexpr = x_ptr.dtype.element_ty
    k = tl.arange(0, BLOCK_K)
    shared = size // SHARED
    acc_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for begin in range(0, size // EACH, BLOCK_K):
        byte_K = begin + k
        here_K = byte_K < size // EACH
        here_KN = here_K[:, None] & here_N[None, :]
        bytes_KN = tl.load(
            codes_ptr + n[None, :] * (size // EACH) + byte_K[:, None], mask=here_KN, other=0
        )
        at_KN = n[None, :] * shared + (byte_K * EACH // SHARED)[:, None]
        for half in tl.static_range(EACH):
            codes_KN = bytes_KN
            if PAIRED:
                codes_KN = (bytes_KN >> (4 * half)) & 15
            w_KN = decoded(
                codes_KN.to(tl.int32),
                at_KN,
                here_KN,
                scales_ptr,
                zeros_ptr,
                leasts_ptr,
                table_ptr,
                E4M3,
                TYPE,
            )
            x_MK = tl.load(
                x_ptr + m[:, None] * size + (byte_K * EACH + half)[None, :],
                mask=here_M[:, None] & here_K[None, :],
                other=0.0,
            )
            acc_MN = dot(x_MK, w_KN, acc_MN)
    here_MN = here_M[:, None] & here_N[None, :]
    if bias_ptr is not None:
        acc_MN += tl.load(bias_ptr + n, mask=here_N, other=0.0).to(tl.float32)[None, :]
    tl.store(out_ptr + m[:, None] * columns + n[None, :], rounded(acc_MN, TYPE), mask=here_MN)


def plane_linear(x: Tensor, planes: Planes, bias: Tensor | None) -> Tensor:
    """y `[..., N]` in x's type, of x `[..., K]`; all on one device."""
    rows_x = x.reshape(-1, planes.inputs).contiguous()
    rows = rows_x.shape[0]
    out = torch.empty(rows, planes.outputs, dtype=x.dtype, device=x.device)
    block_m = _FEW_ROWS if rows <= _FEW_ROWS else _MANY_ROWS
    grid = triton.cdiv(rows, block_m), triton.cdiv(planes.outputs, _BLOCK_N)
    if out.numel():
        multiply[grid](
            rows_x,
            planes.codes,
            planes.scales,
            planes.zeros,
            planes.leasts,
            planes.table,
            bias,
            out,
            rows,
            planes.inputs,
            planes.outputs,
            SHARED=planes.shared,
            PAIRED=planes.is_paired,
            E4M3=planes.is_e4m3,
            BLOCK_M=block_m,
            BLOCK_N=_BLOCK_N,
            BLOCK_K=_BLOCK_K // 2 if planes.is_paired else _BLOCK_K,
            num_warps=4,
            num_stages=3,
        )
    return out.view(*x.shape[:-1], planes.outputs)
