"""Sparse prompt attention in torch against dense masked attention in float64, and its lists."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.kernels.paged_attention.tiles import Tiles
from penstock.kernels.sparse_prefill.labels import Labels, hashed, kept
from penstock.kernels.sparse_prefill.lists import Lists, choose
from penstock.kernels.sparse_prefill.reference import sparse_prefill
from tests.kernels.sparse import CASES, Data, dense, make

SMALL = Tiles(block_m=16, block_n=16, warps=4, stages=2)
SCALE = 0.3


@pytest.mark.parametrize("name", CASES)
def test_equals_masked_attention(name: str) -> None:
    data = make(CASES[name], torch.float32)
    out = sparse_prefill(data.q_THD, data.k_KLD, data.v_KLD, data.labels, scale=SCALE)
    torch.testing.assert_close(out.double(), dense(data, SCALE), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["kept", "hashed"])
def test_keeps_the_dtype(name: str, dtype: torch.dtype) -> None:
    data = make(CASES[name], dtype)
    out = sparse_prefill(data.q_THD, data.k_KLD, data.v_KLD, data.labels, scale=SCALE)
    assert out.dtype == dtype
    exact = dense(data, SCALE)
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def causal(data: Data) -> Tensor:
    """Dense causal attention, torch's own."""
    rows, keys = data.q_THD.shape[0], data.k_KLD.shape[1]
    mask = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
    q, k, v = data.q_THD.transpose(0, 1)[None], data.k_KLD[None], data.v_KLD[None]
    out = F.scaled_dot_product_attention(q, k, v, mask, scale=SCALE, enable_gqa=True)
    return out[0].transpose(0, 1)


@pytest.mark.parametrize("name", ["kept-all", "hashed-alike"])
def test_all_kept_and_all_in_one_bucket_are_dense(name: str) -> None:
    data = make(CASES[name], torch.float32)
    out = sparse_prefill(data.q_THD, data.k_KLD, data.v_KLD, data.labels, scale=SCALE)
    torch.testing.assert_close(out, causal(data), rtol=1e-5, atol=1e-5)
    chosen = choose(Lists.of(data.labels, SMALL))
    # One's own key needs no tile: some of the diagonal has no other.
    assert chosen.density == 1.0 if name == "kept-all" else 0.9 < chosen.density < 1.0
    assert chosen.dense


def test_large_parts_are_taken_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(CASES["kept"], torch.float32)
    given = data.q_THD, data.k_KLD, data.v_KLD, data.labels
    whole = sparse_prefill(*given, scale=SCALE)
    monkeypatch.setattr("penstock.kernels.sparse_prefill.reference._TILE_ELEMENTS", 100)
    torch.testing.assert_close(sparse_prefill(*given, scale=SCALE), whole, rtol=1e-6, atol=1e-6)


def test_a_query_alone_in_its_bucket_returns_its_own_value() -> None:
    q_THD = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    k_KLD = torch.tensor([[[-1.0, 0.0], [0.0, -1.0]]])
    v_KLD = torch.tensor([[[5.0], [7.0]]])
    labels = hashed(q_THD, k_KLD, torch.eye(2)[None])
    assert labels.queries_TH.tolist() == [[0], [1]]
    assert labels.keys_KL.tolist() == [[2, 3]]
    assert torch.equal(
        sparse_prefill(q_THD, k_KLD, v_KLD, labels, scale=1.0), v_KLD.transpose(0, 1)
    )


@pytest.mark.parametrize("name", CASES)
def test_lists_name_the_tiles_that_somebody_sees(name: str) -> None:
    data = make(CASES[name], torch.float32)
    check_lists(data, Lists.of(data.labels, SMALL))
    check_lists(data, Lists.of(data.labels, Tiles(block_m=32, block_n=8, warps=4, stages=2)))


def check_lists(data: Data, lists: Lists) -> None:
    m, n, group = lists.tiles.block_m, lists.tiles.block_n, data.labels.group
    visited = possible = 0
    for kv_head in range(data.k_KLD.shape[0]):
        entries = lists.queries_KE[kv_head].tolist()
        columns = lists.columns_KL[kv_head].tolist()
        query_labels = data.labels.of_queries()[kv_head].tolist()
        key_labels = data.labels.keys_KL[kv_head].tolist()
        assert entries == sorted(range(len(entries)), key=query_labels.__getitem__)
        assert columns == sorted(range(len(columns)), key=key_labels.__getitem__)
        assert lists.query_labels_KE[kv_head].tolist() == sorted(query_labels)
        assert lists.column_labels_KL[kv_head].tolist() == sorted(key_labels)
        for block in range(len(range(0, len(entries), m))):
            seen = torch.zeros(len(columns), dtype=torch.bool)
            for entry in entries[block * m : block * m + m]:
                seen_L = data.seen_HTL[kv_head * group + entry % group, entry // group].clone()
                # The key at a query's own position may be outside of its label.
                if data.labels.own:
                    seen_L[data.labels.root + entry // group] = False
                seen |= seen_L[columns]
            wanted = [at for at, tile in enumerate(seen.split(n)) if bool(tile.any())]
            count = int(lists.counts_KB[kv_head, block])
            assert lists.tiles_KBC[kv_head, block, :count].tolist() == wanted
            visited += count
            last = (min(len(entries), block * m + m) - 1) // group + data.labels.root
            possible += last // n + 1
    assert lists.density().item() == pytest.approx(visited / max(1, possible))


def test_dense_is_taken_above_half() -> None:
    def density(labels: Labels) -> tuple[float, bool]:
        chosen = choose(Lists.of(labels, SMALL))
        return chosen.density, chosen.dense

    rows = 256
    every = torch.ones(rows, 1, dtype=torch.bool)
    # 16 x 17 / 2 tiles in all; of half of the queries and half of the keys 8 x 9 / 2.
    half = torch.arange(rows) % 2 == 0
    assert density(kept(half[:, None], half[None])) == (pytest.approx(36 / 136), False)
    # Of all queries and half of the keys: two blocks see 1 tile, two see 2, and so on to 8.
    assert density(kept(every, half[None])) == (pytest.approx(72 / 136), True)
    assert density(kept(~every, half[None])) == (0.0, False)
