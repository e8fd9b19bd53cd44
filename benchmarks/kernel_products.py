"""Limits of a machine, and products with weights: torch's, and those of `row_invariant`."""

from typing import Final

import torch
from torch import Tensor

from benchmarks.kernel_plan import Case, Launch, Plan
from penstock.kernels.row_invariant.triton import matmul

COPY: Final = "copy"
MATRIX: Final = "matrix product"
LIBRARY: Final = "torch.mm"
MULTIPLY: Final = "row_invariant.matmul"


def copy(plan: Plan) -> Case:
    """How fast memory is read and written."""

    def prepare(device: torch.device) -> Launch:
        source = torch.ones(plan.copied_bytes // 4, device=device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    return Case(
        kernel=COPY,
        shape="limit",
        dtype=torch.float32,
        sequences=1,
        rows=1,
        keys=0,
        bytes_moved=2 * plan.copied_bytes,
        operations=0,
        limit="copy",
        prepare=prepare,
    )


def matrix(plan: Plan) -> Case:
    """How fast matrix units are at their best."""
    side = plan.matrix

    def prepare(device: torch.device) -> Launch:
        a, b = (torch.randn(side, side, device=device).to(plan.dtype) for _ in range(2))
        out = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=out)

    return Case(
        kernel=MATRIX,
        shape="limit",
        dtype=plan.dtype,
        sequences=1,
        rows=side,
        keys=0,
        bytes_moved=3 * side**2 * plan.dtype.itemsize,
        operations=2 * side**3,
        limit="matrix",
        prepare=prepare,
    )


def product(plan: Plan, kernel: str, rows: int) -> Case:
    """Rows times the weights of a feed-forward layer, stored as linear layers store them."""
    size, columns = plan.heads * plan.size, plan.feed_forward
    numbers = rows * size + size * columns + rows * columns

    def prepare(device: torch.device) -> Launch:
        def drawn(count: int) -> Tensor:
            return torch.randn(count, size, device=device).to(plan.dtype)

        x, w = drawn(rows), drawn(columns).t()
        return lambda: (torch.mm if kernel == LIBRARY else matmul)(x, w)

    return Case(
        kernel=kernel,
        shape="linear",
        dtype=plan.dtype,
        sequences=1,
        rows=rows,
        keys=0,
        bytes_moved=numbers * plan.dtype.itemsize,
        operations=2 * rows * size * columns,
        limit="copy" if rows < plan.matrix_bound_rows else "matrix",
        prepare=prepare,
        beside=None if kernel == LIBRARY else LIBRARY,
    )
