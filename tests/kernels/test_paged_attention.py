"""`paged_attention` and `kv_write` in torch against dense attention in float64."""

import pytest
import torch

from penstock.kernels.batch import PagedBatch
from penstock.kernels.kv_write.reference import kv_write
from penstock.kernels.paged_attention.reference import paged_attention
from tests.kernels.paged import CASES, dense, make

STORED = [None, torch.bfloat16, torch.float8_e4m3fn, torch.int8]


@pytest.mark.parametrize("stored", STORED, ids=["auto", "bf16", "fp8", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_equals_dense(name: str, dtype: torch.dtype, stored: torch.dtype | None) -> None:
    case = CASES[name]
    data = make(case, dtype, stored)
    exact = dense(case, data, torch.float64)
    out = paged_attention(
        data.q_THD,
        data.k_cache,
        data.v_cache,
        data.batch,
        scale=case.scale,
        window=case.window,
        softcap=case.softcap,
        sinks_H=data.sinks_H,
        **data.scales,
    )
    assert out.dtype == dtype
    # At most twice the error of the same formula in the same precision, plus rounding.
    bound = 2 * (dense(case, data, dtype).double() - exact).abs().max().item()
    epsilon = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    assert (out.double() - exact).abs().max().item() <= bound + epsilon


def test_neighbours_and_page_numbers_change_nothing() -> None:
    """A row's result is the same bits alone, beside others, and in other pages."""
    case = CASES["mixed"]
    data = make(case, torch.float32)
    together = paged_attention(data.q_THD, data.k_cache, data.v_cache, data.batch, scale=case.scale)
    for i in range(len(case.sizes)):
        start, stop = data.batch.query_starts[i : i + 2]
        length = data.batch.kv_lengths[i]
        k_cache = torch.empty(data.k_cache.shape).transpose(0, 1).contiguous().transpose(0, 1)
        v_cache = torch.empty_like(k_cache)
        table = list(range(len(data.batch.tables[i])))
        for new, old in zip(table, data.batch.tables[i], strict=True):
            k_cache[new], v_cache[new] = data.k_cache[old], data.v_cache[old]
        alone = PagedBatch(
            page_size=case.page,
            query_starts=[0, stop - start],
            kv_lengths=[length],
            tables=[table],
            slots=torch.arange(length - (stop - start), length),
        )
        out = paged_attention(data.q_THD[start:stop], k_cache, v_cache, alone, scale=case.scale)
        assert torch.equal(out, together[start:stop])


def test_write_touches_its_slots_only() -> None:
    cache = torch.zeros(2, 4, 3, 5).transpose(0, 1)
    values = torch.zeros(2, 4, 3, 6).transpose(0, 1)
    rows = torch.randn(3, 2, 5)
    kv_write(rows, torch.randn(3, 2, 6), cache, values, torch.tensor([7, 0, 11]))
    for row, slot in enumerate((7, 0, 11)):
        assert torch.equal(cache[slot // 3, :, slot % 3], rows[row])
    assert int((cache != 0).sum()) == rows.numel()
