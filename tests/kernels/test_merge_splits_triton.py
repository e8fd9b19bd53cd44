"""`merge_splits` against the formula in float64, with more splits than are read at a time."""

import math

import pytest
import torch

triton = pytest.importorskip("penstock.kernels.merge_splits.triton")

SPLIT, HEADS, SIZE = 16, 3, 12
LENGTHS = [0, 5, 16 * 8, 16 * 8 + 1, 16 * 21]
ROWS = [1, 2, 0, 3, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_the_formula(dtype: torch.dtype) -> None:
    splits = [max(1, math.ceil(length / SPLIT)) for length in LENGTHS]
    counts = [rows * count for rows, count in zip(ROWS, splits, strict=True)]
    parts = torch.randn(sum(counts), HEADS, SIZE)
    lses = 20.0 * torch.randn(sum(counts), HEADS)
    lses[torch.rand(lses.shape) < 0.3] = -torch.inf
    parts[lses == -torch.inf] = 0.0
    starts = torch.tensor([0, *ROWS]).cumsum(0).to(torch.int32)
    firsts = starts[:-1] + 2
    begins = torch.tensor([0, *counts[:-1]]).cumsum(0).to(torch.int32)
    out, lse = torch.empty(9, HEADS, SIZE, dtype=dtype), torch.empty(9, HEADS)
    triton.merge[sum(ROWS) + len(ROWS), HEADS](
        parts,
        lses,
        out,
        lse,
        firsts,
        starts,
        torch.tensor(LENGTHS, dtype=torch.int32),
        begins,
        len(ROWS),
        SPLIT=SPLIT,
        VALUE_SIZE=SIZE,
        BLOCK_S=8,
        BLOCK_V=16,
    )
    for i, rows in enumerate(ROWS):
        for row in range(rows):
            at = [int(begins[i]) + split * rows + row for split in range(splits[i])]
            weights = (lses[at].double() * math.log(2)).softmax(0).nan_to_num(0.0)
            want = (parts[at].double() * weights[..., None]).sum(0)
            to = int(firsts[i]) + row
            torch.testing.assert_close(out[to], want.to(dtype), rtol=2**-7, atol=1e-6)
            exact = (lses[at].double() * math.log(2)).logsumexp(0) / math.log(2)
            torch.testing.assert_close(lse[to].double(), exact, rtol=1e-5, atol=1e-5)
    assert bool(out[:2].isnan().all()), "rows of others are left alone"
