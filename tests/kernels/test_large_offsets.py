"""Offsets of the largest steps: rows x keys, pages, slots and partial results beyond 2^31.

Kind: numbers of 32 bits whose product is not, and assertions on what nobody uses. Kernels run in
Triton's interpreter with its check for overflows, on files with holes in the place of memory. What
the compiled kernels for CPUs count is of 64 bits throughout, but for sums of bytes (test_native.py,
test_linear.py).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.kernels.batch import PagedBatch
from penstock.kernels.paged_attention.ragged import Ragged, plans, ragged

interpreter = pytest.importorskip("triton.runtime.interpreter")
attention = pytest.importorskip("penstock.kernels.paged_attention.triton")
scoring = pytest.importorskip("penstock.kernels.scored_attention.triton")
evicting = pytest.importorskip("penstock.kernels.evict.triton")

FAR = 2**31 + 24
WIDE = 2**30 + 16
PAGE, SIZE = 16, 4
Memory = Callable[..., Tensor]


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Memory:
    """Tensors of any size, of which only what is touched exists; overflows are errors meanwhile."""
    monkeypatch.setattr(
        interpreter.interpreter_builder, "options", interpreter.InterpreterOptions(debug=True)
    )

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        size = int(np.prod(shape, dtype=np.int64))
        return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)

    return make


def single_rows(lengths: list[int]) -> tuple[Tensor, Tensor, PagedBatch]:
    """Queries and a cache of keys, which are values too; a row each, in pages of their own."""
    counts = [-(-length // PAGE) for length in lengths]
    cache = torch.randn(1, sum(counts), PAGE, SIZE).transpose(0, 1)
    ends = np.cumsum(counts).tolist()
    batch = PagedBatch(
        page_size=PAGE,
        query_starts=list(range(len(lengths) + 1)),
        kv_lengths=lengths,
        tables=[list(range(end - count, end)) for end, count in zip(ends, counts, strict=True)],
        slots=torch.zeros(len(lengths), dtype=torch.int64),
    )
    return torch.randn(len(lengths), 1, SIZE), cache, batch


def launched(
    q_THD: Tensor, cache: Tensor, of: Ragged, workspace: Any, **how: Any
) -> tuple[Tensor, Tensor]:
    out, lse = torch.empty_like(q_THD), torch.empty(q_THD.shape[:2])
    attention.launch(q_THD, cache, cache, of, out, workspace, scale=0.5, lse_TH=lse, **how)
    return out, lse


def test_a_step_of_the_largest_settings() -> None:
    """8,192 rows over 262,144 keys, and more: cells are counted where nobody asks for scores."""
    sizes = [(8192, 262_144), (16_384, 131_072), (64, 1 << 20), (1, 1 << 20)]
    batch = PagedBatch(
        page_size=PAGE,
        query_starts=np.cumsum([0, *(rows for rows, _ in sizes)]).tolist(),
        kv_lengths=[keys for _, keys in sizes],
        tables=[list(range(keys // PAGE)) for _, keys in sizes],
        slots=torch.empty(0, dtype=torch.int64),
    )
    windows, chunks = plans(batch)
    cells = [rows * keys for rows, keys in sizes]
    assert (chunks.cell_count, windows.cell_count) == (sum(cells[:2]), sum(cells[2:]))
    assert chunks.arrays[6].tolist() == [0, cells[0]]
    assert windows.arrays[4].tolist() == [0, 64 * 4096]


def test_tables(memory: Memory) -> None:
    q_THD, cache, batch = single_rows([20, 20, 20])
    (of,) = ragged(batch)
    expected, _ = launched(q_THD, cache, of, None)
    tables = memory(3, WIDE, dtype=torch.int32)
    tables[:, :2] = of.tables
    found, _ = launched(q_THD, cache, replace(of, tables=tables), None)
    assert torch.equal(found, expected)


def test_partial_results(memory: Memory) -> None:
    q_THD, cache, batch = single_rows([300])
    (of,) = ragged(batch)
    expected, _ = launched(q_THD, cache, of, attention.Workspace.of(of, 1, SIZE, q_THD.device))
    workspace = attention.Workspace(out=memory(FAR + 2, 1, SIZE), lse=memory(FAR + 2, 1))
    found, _ = launched(q_THD, cache, replace(of, parts=torch.tensor([FAR])), workspace)
    assert torch.equal(found, expected)


def test_scores_and_masses(memory: Memory) -> None:
    q_THD, cache, batch = single_rows([20])
    (of,) = ragged(batch)
    far = replace(of, cells=torch.tensor([FAR]), keys=torch.tensor([FAR]))
    scores, weights, mass = (memory(FAR + 20) for _ in range(3))
    out, lse = torch.empty_like(q_THD), torch.empty(1, 1)
    arguments = q_THD, cache, cache, far, out, None, lse
    scoring.weights_of_rows(*arguments, scores, weights, scale=0.5)
    scoring.mass_of_rows(q_THD, cache, far, lse, mass, scale=0.5)
    exact = (q_THD[0, 0] @ cache[:, 0].reshape(-1, SIZE)[:20].T * 0.5).softmax(0)
    torch.testing.assert_close(weights[FAR:], exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mass[FAR:], exact, rtol=1e-5, atol=1e-6)


def test_rows_times_heads_times_keys(memory: Memory) -> None:
    """Of a draft of two rows: 4,096 heads (they could be 64 rows of 64) over 524,288 keys."""
    heads, keys = 4096, 524_288
    starts, zero = torch.tensor([0, 2], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    scores, weights = memory(2 * heads * keys), memory(2 * keys)
    scoring.masses[(3, 1, 1)](
        scores,
        torch.zeros(2, heads),
        weights,
        zero,
        starts,
        torch.tensor([keys], dtype=torch.int32),
        zero.long(),
        None,
        1,
        0,
        GROUP=heads,
        WINDOW=False,
        TREES=False,
        BLOCK_G=heads,
        BLOCK_N=16,
    )
    for row in range(2):
        assert weights[row * keys :][:16].tolist() == [float(heads)] * 16


def test_slots_of_contexts(memory: Memory) -> None:
    tables = memory(3, WIDE, dtype=torch.int32)
    tables[:, 0] = torch.tensor([5, 6, 7])
    slots = torch.empty(3, 1, dtype=torch.int64)
    one = torch.ones(3, dtype=torch.int32)
    positions = torch.arange(8, dtype=torch.int32).repeat(3, 1, 1)
    masses = torch.ones(3, 1, 8)
    masses[:, :, 4] = 0.5
    evicting.evict(masses, positions, 8 * one, one, one, tables, slots, page_size=PAGE)
    assert slots[:, 0].tolist() == [page * PAGE + 4 for page in (5, 6, 7)]
