"""The Triton kernel of `sparse_prefill` against dense masked attention in float64.

In Triton's interpreter, on a CPU; those marked `gpu` with the compiled kernel.
"""

import numpy as np
import pytest
import torch

from penstock.kernels.paged_attention.tiles import Tiles
from penstock.kernels.sparse_prefill.labels import Labels, kept
from penstock.kernels.sparse_prefill.lists import Lists
from penstock.kernels.sparse_prefill.reference import sparse_prefill
from tests.kernels.sparse import CASES, dense, make

triton = pytest.importorskip("penstock.kernels.sparse_prefill.triton")

SMALL = Tiles(block_m=16, block_n=16, warps=4, stages=2)
WIDE = Tiles(block_m=32, block_n=64, warps=4, stages=2)
SCALE = 0.3


def check(name: str, dtype: torch.dtype, tiles: Tiles | None, device: str = "cpu") -> None:
    data = make(CASES[name], dtype)
    exact = dense(data, SCALE)
    given = [tensor.to(device) for tensor in (data.q_THD, data.k_KLD, data.v_KLD)]
    labels = Labels(
        queries_TH=data.labels.queries_TH.to(device),
        keys_KL=data.labels.keys_KL.to(device),
        own=data.labels.own,
    )
    if tiles is None:
        out = triton.sparse_prefill(*given, labels, scale=SCALE)
    else:
        out = torch.full(exact.shape, float("nan"), dtype=dtype, device=device)
        triton.launch(*given, poisoned(Lists.of(labels, tiles)), out, scale=SCALE)
    assert out.dtype == dtype
    # At most twice the error of the same formula in the same precision, plus rounding.
    same = sparse_prefill(data.q_THD, data.k_KLD, data.v_KLD, data.labels, scale=SCALE)
    bound = 2 * largest(same.double() - exact)
    epsilon = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    assert largest(out.cpu().double() - exact) <= bound + epsilon
    assert torch.equal(out.cpu()[~seen(name)], torch.zeros_like(out.cpu()[~seen(name)]))


def seen(name: str) -> torch.Tensor:
    """Rows and heads that see something."""
    return make(CASES[name], torch.float32).seen_HTL.any(2).T


def largest(errors: torch.Tensor) -> float:
    return errors.abs().max().item() if errors.numel() else 0.0


def poisoned(lists: Lists) -> Lists:
    """What a list holds behind its count must not be read."""
    behind = torch.arange(lists.tiles_KBC.shape[2], device=lists.tiles_KBC.device)
    lists.tiles_KBC.masked_fill_(behind >= lists.counts_KB[..., None], 2**31 - 1)
    return lists


@pytest.mark.parametrize("name", CASES)
def test_equals_masked_attention(name: str) -> None:
    check(name, torch.float32, SMALL)


@pytest.mark.parametrize("name", ["kept-chunk", "hashed-chunk", "both"])
def test_equals_masked_attention_with_other_tiles(name: str) -> None:
    check(name, torch.float32, WIDE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["kept", "kept-chunk", "hashed", "hashed-chunk", "both"])
def test_equals_masked_attention_in_16_bits(name: str, dtype: torch.dtype) -> None:
    check(name, dtype, None)


@pytest.mark.gpu
@pytest.mark.parametrize("tiles", [None, SMALL, WIDE], ids=["own", "small", "wide"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_equals_masked_attention_on_a_gpu(
    name: str, dtype: torch.dtype, tiles: Tiles | None
) -> None:
    check(name, dtype, tiles, "cuda")


def test_offsets_beyond_31_bits() -> None:
    """Keys and values that lie far apart, in memory of which the rest is never touched."""
    keys, size = 20, 16
    apart = 2**31 // (keys - 2)
    memory = torch.from_numpy(np.zeros(apart * keys, dtype=np.float16))
    k_KLD = memory.as_strided((1, keys, size), (0, apart, 1))
    k_KLD.copy_(torch.randn(1, keys, size))
    q_THD = torch.randn(keys, 1, size).half()
    every = torch.ones(keys, 1, dtype=torch.bool)
    for labels in (kept(every, every.T), hashed_apart(keys)):
        given = q_THD, k_KLD, k_KLD, labels
        out = triton.sparse_prefill(*given, scale=SCALE, tiles=SMALL)
        torch.testing.assert_close(out, sparse_prefill(*given, scale=SCALE), rtol=1e-3, atol=1e-3)


def hashed_apart(keys: int) -> Labels:
    """Each query sees its own key alone."""
    labels = torch.arange(keys, dtype=torch.int32)
    return Labels(queries_TH=labels[:, None], keys_KL=labels[None] + keys, own=True)


def test_what_is_launched_depends_on_shapes_alone() -> None:
    """So that it can be captured in a graph: lists of other labels have the same sizes."""
    shapes: set[tuple[torch.Size, ...]] = set()
    for queries, keys in ((0.0, 1.0), (1.0, 0.0), (0.5, 0.5)):
        labels = kept(torch.rand(50, 2) < queries, torch.rand(1, 70) < keys)
        lists = Lists.of(labels, SMALL)
        shapes.add((lists.queries_KE.shape, lists.columns_KL.shape, lists.tiles_KBC.shape))
    assert len(shapes) == 1
