"""What keys receive, by the compiled kernels, against the formula in float64."""

from dataclasses import replace

import pytest
import torch

from penstock.kernels.native.library import Library, builds
from penstock.kernels.paged_attention.native import launcher as attention
from penstock.kernels.scored_attention import reference
from penstock.kernels.scored_attention.native import launcher
from tests.kernels.paged import Case, called, make
from tests.kernels.scores import EACH, SCORED, weights

each_build = pytest.mark.parametrize("build", builds()[0], ids=[each.name for each in builds()[0]])
LONG = Case(sizes=((1, 1100), (80, 600), (2, 513)), kv_heads=1, window=550, group=5)


@each_build
@EACH
def test_of_each_row(build: Library, name: str, stored: torch.dtype | None) -> None:
    case = SCORED[name]
    data = make(case, torch.float32, stored)
    out, found = called(launcher(build), case, data)
    assert torch.equal(out, called(attention(build), case, data)), "scores change no bit"
    for one, exact in zip(found, weights(case, data), strict=True):
        torch.testing.assert_close(one.double(), exact, rtol=1e-5, atol=1e-6)


@each_build
@EACH
def test_of_all_rows_by_their_votes(build: Library, name: str, stored: torch.dtype | None) -> None:
    case = SCORED[name]
    data = make(case, torch.float32, stored)
    votes_T = torch.rand(data.q_THD.shape[0])
    votes_T[::3] = 0.0
    out, found = called(launcher(build), case, data, votes_T=votes_T)
    assert torch.equal(out, called(attention(build), case, data))
    for i, exact in enumerate(weights(case, data)):
        start, stop = data.batch.query_starts[i : i + 2]
        summed = torch.einsum("r,krl->kl", votes_T[start:stop].double(), exact)
        torch.testing.assert_close(found[i].double(), summed, rtol=1e-5, atol=1e-5)


@each_build
def test_threads_change_no_bit(build: Library) -> None:
    """Also of long contexts, whose keys threads share out."""
    data = make(LONG, torch.float32)
    votes_T = torch.rand(data.q_THD.shape[0])
    for votes in (None, votes_T):
        torch.set_num_threads(1)
        out, found = called(launcher(build), LONG, data, votes_T=votes)
        for one, exact in zip(found, weights(LONG, data), strict=True):
            assert votes is not None or torch.allclose(one.double(), exact, atol=1e-6)
        torch.set_num_threads(3)
        again, shared = called(launcher(build), LONG, data, votes_T=votes)
        assert torch.equal(again, out)
        assert all(torch.equal(a, b) for a, b in zip(shared, found, strict=True))


@each_build
def test_sequences_without_rows_are_left_out(build: Library) -> None:
    case = Case(sizes=((0, 12), (2, 20), (0, 3)))
    data = make(case, torch.float32)
    _, found = called(launcher(build), case, data)
    assert [one.shape for one in found] == [(case.kv_heads, 2, 20)]


@each_build
def test_more_query_heads_than_a_unit_has_room_for(build: Library) -> None:
    """Falcon has 71 of them on one: the reference takes those."""
    case = replace(SCORED["mixed"], group=71, kv_heads=1)
    data = make(case, torch.float32)
    out, found = called(launcher(build), case, data)
    expected, given = called(reference.paged_scored_attention, case, data)
    torch.testing.assert_close(out, expected)
    for one, other in zip(found, given, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(called(attention(build), case, data), expected, atol=1e-5, rtol=1e-5)
