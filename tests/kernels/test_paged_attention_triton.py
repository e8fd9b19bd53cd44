"""The Triton kernels of `paged_attention` against dense attention in float64.

In Triton's interpreter, on a CPU; those marked `gpu` with compiled kernels.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.kernels.batch import PagedBatch
from tests.kernels.paged import CASES, Case, Data, called, dense, make, moved

triton = pytest.importorskip("penstock.kernels.paged_attention.triton")

SPLITS = Case(sizes=((1, 255), (1, 256), (3, 258), (1, 1000), (70, 300)), kv_heads=1, group=2)
MORE = {
    "splits": SPLITS,
    "splits-window": Case(
        sizes=((1, 1000), (4, 600)), kv_heads=1, window=100, sinks=True, size=8, group=7
    ),
    "splits-trees": Case(sizes=((12, 261), (40, 530)), kv_heads=1, trees=True, window=270),
    "chunk": Case(sizes=((66, 66), (80, 200), (1, 9)), kv_heads=1, window=50, size=32),
    "trees-wide": Case(sizes=((40, 41), (9, 9), (66, 80)), trees=True, consecutive=True),
}
ALL = {**CASES, **MORE}
ELSE = ["mixed", "all", "odd-head", "splits", "trees-all"]
"""Cases for further dtypes: what is computed in them is the same for all others."""


def attend(case: Case, data: Data, device: str = "cpu") -> Tensor:
    return called(triton.paged_attention, case, data, device).cpu()


def check(case: Case, dtype: torch.dtype, stored: torch.dtype | None, device: str = "cpu") -> None:
    data = make(case, dtype, stored)
    exact = dense(case, data, torch.float64)
    out = attend(case, data, device)
    assert out.dtype == dtype
    # At most twice the error of the same formula in the same precision, plus rounding.
    bound = 2 * (dense(case, data, dtype).double() - exact).abs().max().item()
    epsilon = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert (out.double() - exact).abs().max().item() <= bound + epsilon


@pytest.mark.parametrize("name", ALL)
def test_equals_dense(name: str) -> None:
    check(ALL[name], torch.float32, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "stored", [torch.bfloat16, torch.int8, torch.float8_e4m3fn], ids=["bf16", "int8", "fp8"]
)
@pytest.mark.parametrize("name", ELSE)
def test_equals_dense_over_other_caches(name: str, dtype: torch.dtype, stored: torch.dtype) -> None:
    check(ALL[name], dtype, stored)


@pytest.mark.parametrize("name", ELSE)
def test_equals_dense_in_float16(name: str) -> None:
    check(ALL[name], torch.float16, None)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stored", [None, torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_equals_dense_on_a_gpu(name: str, dtype: torch.dtype, stored: torch.dtype | None) -> None:
    check(ALL[name], dtype, stored, "cuda")


def one_by_one(case: Case, data: Data, index: int) -> list[Tensor]:
    """Each row of a sequence alone, over the keys up to its own, in the first pages of a cache."""
    rows, length = case.sizes[index]
    begin = data.batch.query_starts[index]
    pages = data.batch.tables[index]
    outs: list[Tensor] = []
    for row in range(rows):
        held = length - rows + row + 1
        table = list(range(-(-held // case.page)))
        batch = PagedBatch(
            page_size=case.page,
            query_starts=[0, 1],
            kv_lengths=[held],
            tables=[table],
            slots=torch.tensor([held - 1]),
        )
        caches = [moved(cache[pages], "cpu") for cache in (data.k_cache, data.v_cache)]
        q_THD = data.q_THD[begin + row : begin + row + 1]
        outs.append(triton.paged_attention(q_THD, *caches, batch, scale=case.scale)[0])
    return outs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_neighbours_draft_lengths_and_page_numbers_change_nothing(dtype: torch.dtype) -> None:
    """A row's result has the same bits in a draft of any length, across splits, in any batch."""
    case = Case(sizes=((1, 63), (5, 258), (1, 17), (3, 40)), kv_heads=1)
    data = make(case, dtype)
    together = attend(case, data)
    for index in range(len(case.sizes)):
        begin = data.batch.query_starts[index]
        for row, out in enumerate(one_by_one(case, data, index)):
            assert torch.equal(out, together[begin + row])


def test_rows_without_keys_give_zeros() -> None:
    """As in a captured graph with places for more sequences than there are."""
    cache = torch.randn(1, 40, 16, 16).transpose(0, 1)
    batch = PagedBatch(
        page_size=16,
        query_starts=[0, 1, 1, 2],
        kv_lengths=[0, 30, 600],
        tables=[[0], [3, 4], list(range(38))],
        slots=torch.tensor([0, 599]),
    )
    out = triton.paged_attention(torch.randn(2, 2, 16), cache, cache, batch, scale=0.3)
    assert torch.equal(out[0], torch.zeros(2, 16))
    assert not out[1].isnan().any()


def test_offsets_beyond_31_bits() -> None:
    """The last page of a cache of more than 2^31 elements, of which the rest is never touched."""
    page, size = 16, 64
    pages = 2**31 // (page * size) + 2
    cache = torch.from_numpy(np.zeros((1, pages, page, size), dtype=np.int8)).transpose(0, 1)
    scales = torch.from_numpy(np.zeros((1, pages, page, 1), dtype=np.float32)).transpose(0, 1)
    scales[pages - 1] = 0.5
    cache[pages - 1] = torch.randint(-127, 128, (1, page, size), dtype=torch.int8)
    batch = PagedBatch(
        page_size=page,
        query_starts=[0, 1],
        kv_lengths=[page],
        tables=[[pages - 1]],
        slots=torch.tensor([pages * page - 1]),
    )
    q_THD = torch.randn(1, 1, size)
    how = {"k_scales": scales, "v_scales": scales}
    out = triton.paged_attention(q_THD, cache, cache, batch, scale=0.01, **how)
    keys = cache[pages - 1, 0].double() * 0.5
    exact = (keys @ q_THD[0, 0].double() * 0.01).softmax(0) @ keys
    torch.testing.assert_close(out[0, 0].double(), exact, rtol=1e-5, atol=1e-4)


def test_log_sum_exps() -> None:
    """Base 2, of split and unsplit rows alike."""
    case = Case(sizes=((2, 300), (66, 70)), kv_heads=1, group=2)
    data = make(case, torch.float32)
    lse_TH = torch.empty(68, 2)
    out = torch.empty(68, 2, 16)
    for of in triton.ragged(data.batch):
        workspace = triton.Workspace.of(of, 2, 16, torch.device("cpu"))
        triton.launch(
            data.q_THD, data.k_cache, data.v_cache, of, out, workspace, scale=0.3, lse_TH=lse_TH
        )
    for i, (rows, length) in enumerate(case.sizes):
        for row in range(rows):
            at = data.batch.query_starts[i] + row
            keys = data.keys[i][: length - rows + row + 1, 0]
            logits = 0.3 * data.q_THD[at].double() @ keys.T
            exact = logits.logsumexp(1) / np.log(2.0)
            torch.testing.assert_close(lse_TH[at].double(), exact, rtol=1e-5, atol=1e-5)
