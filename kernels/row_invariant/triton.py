# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
# Triton's language is untyped: in a kernel every value is a tensor of the compiler's.
"""Products and sums in which a row's bits depend on that row alone, however many there are.

Every sum runs over one row by one program, in an order that follows from its length; every product
has tiles of one size (He et al. 2025, "Defeating Nondeterminism in LLM Inference", says why
libraries do otherwise). Shape suffixes: B batch, M rows, K summed over, N columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton import dot, rounded

_BLOCK_M = 64
"""For a single row too: with fewer, matrix units of Hopper add in another order."""
_BLOCK = 1024


@triton.jit(do_not_specialize=["rows"])
def multiply(
    x_ptr,
    w_ptr,
    bias_ptr,
    out_ptr,
    rows,
    size,
    columns,
    x_batch,
    w_batch,
    w_k,
    w_n,
    bias_batch,
    bias_row,
    bias_n,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of `x @ w + bias`, rounded once; `x` and `out` are contiguous."""
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    batch = tl.program_id(2).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    here_M, here_N = m < rows, n < columns
    x_ptr += batch * x_batch
    w_ptr += batch * w_batch
    acc_MN = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for begin in range(0, size, BLOCK_K):
        here_K = begin + k < size
        x_MK = tl.load(
            x_ptr + m[:, None] * size + (begin + k)[None, :],
            mask=here_M[:, None] & here_K[None, :],
            other=0.0,
        )
        w_KN = tl.load(
            w_ptr + (begin + k).to(tl.int64)[:, None] * w_k + n.to(tl.int64)[None, :] * w_n,
            mask=here_K[:, None] & here_N[None, :],
            other=0.0,
        )
        acc_MN = dot(x_MK, w_KN, acc_MN)
    here_MN = here_M[:, None] & here_N[None, :]
    if bias_ptr is not None:
        at_MN = batch * bias_batch + m[:, None] * bias_row + n.to(tl.int64)[None, :] * bias_n
        acc_MN += tl.load(bias_ptr + at_MN, mask=here_MN, other=0.0).to(tl.float32)
    out_MN = rounded(acc_MN, out_ptr.dtype.element_ty)
    out_ptr += batch * rows * columns
    tl.store(out_ptr + m[:, None] * columns + n[None, :], out_MN, mask=here_MN)


@triton.jit
def add_up(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """The sum of one row, in float32."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK)
    acc_N = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, size, BLOCK):
        here_N = begin + n < size
        acc_N += tl.load(x_ptr + row * size + begin + n, mask=here_N, other=0.0).to(tl.float32)
    tl.store(out_ptr + row, tl.sum(acc_N, 0))


@triton.jit
def add_along(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """The sums of the first 1, 2, 3 and so on elements of one row, in float32."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.arange(0, BLOCK)
    before = 0.0
    for begin in range(0, size, BLOCK):
        here_N = begin + n < size
        x_N = tl.load(x_ptr + row * size + begin + n, mask=here_N, other=0.0).to(tl.float32)
        tl.store(out_ptr + row * size + begin + n, before + tl.cumsum(x_N, 0), mask=here_N)
        before += tl.sum(x_N, 0)


def matmul(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ w + bias`, added up in float32: `[B, M, K] @ [B, K, N]`, or both without B.

    bias: of a shape that can be expanded to the result's. w and bias may be strided.
    """
    batched = x.ndim == 3
    x, w = (x, w) if batched else (x[None], w[None])
    batch, rows, size = x.shape
    columns = w.shape[2]
    x = x.contiguous()
    out = x.new_empty(batch, rows, columns)
    if bias is not None:
        bias = bias.expand(out.shape)
    strides = (0, 0, 0) if bias is None else bias.stride()
    wide = x.dtype == torch.float32
    block_n, block_k = (64, 32) if wide else (128, 64)
    grid = triton.cdiv(rows, _BLOCK_M), triton.cdiv(columns, block_n), batch
    if out.numel():
        multiply[grid](
            x,
            w,
            bias,
            out,
            rows,
            size,
            columns,
            x.stride(0),
            w.stride(0),
            w.stride(1),
            w.stride(2),
            *strides,
            BLOCK_M=_BLOCK_M,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            num_warps=4,
            num_stages=3,
        )
    return out if batched else out[0]


def row_sum(x_RN: Tensor) -> Tensor:
    """The sum of each row, float32 `[R]`, of float `[R, N]`."""
    x_RN = x_RN.contiguous()
    rows, size = x_RN.shape
    out_R = torch.empty(rows, dtype=torch.float32, device=x_RN.device)
    if rows:
        add_up[rows,](x_RN, out_R, size, BLOCK=_BLOCK, num_warps=4)
    return out_R


def row_cumsum(x_RN: Tensor) -> Tensor:
    """The running sums of each row, float32 `[R, N]`, of float `[R, N]`."""
    x_RN = x_RN.contiguous()
    rows, size = x_RN.shape
    out_RN = torch.empty(rows, size, dtype=torch.float32, device=x_RN.device)
    if out_RN.numel():
        add_along[rows,](x_RN, out_RN, size, BLOCK=_BLOCK, num_warps=4)
    return out_RN
