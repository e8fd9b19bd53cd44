"""What keys receive, by the Triton kernels, against the formula in float64."""

import math

import pytest
import torch
from torch import Tensor

from tests.kernels.paged import Case, Data, called, make
from tests.kernels.scores import EACH, SCORED, weights

triton = pytest.importorskip("penstock.kernels.scored_attention.triton")
attention = pytest.importorskip("penstock.kernels.paged_attention.triton")


def scored(
    case: Case, data: Data, votes_T: Tensor | None, device: str = "cpu"
) -> tuple[Tensor, list[Tensor]]:
    votes_T = None if votes_T is None else votes_T.to(device)
    out, found = called(triton.paged_scored_attention, case, data, device, votes_T=votes_T)
    return out.cpu(), [one.cpu() for one in found]


def attend(case: Case, data: Data) -> Tensor:
    return called(attention.paged_attention, case, data)


@EACH
def test_of_each_row(name: str, stored: torch.dtype | None) -> None:
    case = SCORED[name]
    data = make(case, torch.float32, stored)
    out, found = scored(case, data, None)
    assert torch.equal(out, attend(case, data)), "scores change no bit of the output"
    for one, exact in zip(found, weights(case, data), strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=1e-5, atol=1e-6)
        if not case.sinks:
            assert torch.allclose(one.sum(-1), torch.tensor(float(case.group)))


@EACH
def test_of_all_rows_by_their_votes(name: str, stored: torch.dtype | None) -> None:
    case = SCORED[name]
    data = make(case, torch.float32, stored)
    votes_T = torch.rand(data.q_THD.shape[0])
    votes_T[::3] = 0.0
    out, found = scored(case, data, votes_T)
    assert torch.equal(out, attend(case, data))
    for i, exact in enumerate(weights(case, data)):
        start, stop = data.batch.query_starts[i : i + 2]
        summed = torch.einsum("r,krl->kl", votes_T[start:stop].double(), exact)
        torch.testing.assert_close(found[i].double(), summed, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EACH
def test_on_a_gpu(name: str, stored: torch.dtype | None, dtype: torch.dtype) -> None:
    case = SCORED[name]
    data = make(case, dtype, stored)
    each = scored(case, data, None, "cuda")[1]
    summed = scored(case, data, torch.ones(data.q_THD.shape[0]), "cuda")[1]
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for one, other, exact in zip(each, summed, weights(case, data), strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(one.sum(1), other, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_sums_stay_float32() -> None:
    case = Case(sizes=((1, 40), (70, 90)), kv_heads=1)
    data = make(case, torch.bfloat16)
    for votes_T in (None, torch.ones(71)):
        for one, (rows, _) in zip(scored(case, data, votes_T)[1], case.sizes, strict=True):
            assert one.dtype == torch.float32
            assert float(one.sum()) == pytest.approx(case.group * rows, rel=1e-4)


def test_chunks_of_a_prompt_add_up() -> None:
    """The masses are those of the whole, however it is cut."""
    case = Case(sizes=((75, 75),), kv_heads=1)
    data = make(case, torch.float32)
    whole = scored(case, data, torch.ones(75))[1][0]
    for chunk in (7, 66):
        mass = torch.zeros(1, 75)
        for first in range(0, 75, chunk):
            last = min(75, first + chunk)
            part = type(data.batch)(
                page_size=case.page,
                query_starts=[0, last - first],
                kv_lengths=[last],
                tables=data.batch.tables,
                slots=data.batch.slots[first:last],
            )
            _, found = triton.paged_scored_attention(
                data.q_THD[first:last],
                data.k_cache,
                data.v_cache,
                part,
                votes_T=torch.ones(last - first),
                scale=case.scale,
            )
            mass[:, :last] += found[0]
        torch.testing.assert_close(mass, whole, rtol=1e-5, atol=1e-5)
        assert math.isclose(float(mass.sum()), 75 * case.group, rel_tol=1e-5)
