"""Prompt rows that see labelled keys and all of the newest: torch and Triton against float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.kernels.batch import PagedBatch
from penstock.kernels.sparse_prefill import reference
from penstock.kernels.sparse_prefill.labels import BLOCK, NO_KEY, Labels, hashed, kept, light
from penstock.kernels.sparse_prefill.lists import pairs
from penstock.kernels.sparse_prefill.merge import merged
from tests.kernels.paged import Case, make

triton = pytest.importorskip("penstock.kernels.sparse_prefill.triton")

SCALE = 0.3
Attend = Callable[..., Tensor]
BACKENDS = [
    pytest.param(reference.paged_sparse_prefill, id="torch"),
    pytest.param(triton.paged_sparse_prefill, id="triton"),
]


@dataclass(frozen=True)
class Sparse:
    """`rows` last ones of `keys`; labels by `form`, and the newest `recent` keys."""

    form: str
    rows: int
    keys: int
    recent: int
    consecutive: bool = False


CASES = {
    "kept": Sparse("kept", 30, 70, 7),
    "kept-whole": Sparse("kept", 40, 40, 16, consecutive=True),
    "kept-wide": Sparse("kept", 20, 33, 64),
    "hashed": Sparse("hashed", 30, 70, 7),
    "hashed-whole": Sparse("hashed", 40, 40, 3, consecutive=True),
    "hashed-chunk": Sparse("hashed", 70, 90, 5),
    "nothing-kept": Sparse("nothing", 30, 50, 4),
    "one-row": Sparse("hashed", 1, 30, 5),
}


def labels_of(case: Sparse, q_THD: Tensor, k_KLD: Tensor) -> Labels:
    if case.form == "hashed":
        return hashed(q_THD, k_KLD, torch.randn(2, 16, 2), recent=case.recent)
    part = 0.5 if case.form == "kept" else 0.0
    every = torch.ones(q_THD.shape[:2], dtype=torch.bool)
    return kept(every, torch.rand(k_KLD.shape[:2]) < part, recent=case.recent)


def seen(case: Sparse, labels: Labels, head: int, row: int, key: int) -> bool:
    place = case.keys - case.rows + row
    same = labels.queries_TH[row, head] == labels.keys_KL[head // 3, key]
    return key <= place and (key > place - case.recent or bool(same))


@pytest.mark.parametrize("stored", [None, torch.int8], ids=["float32", "int8"])
@pytest.mark.parametrize("attend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_equals_masked_attention(name: str, attend: Attend, stored: torch.dtype | None) -> None:
    case = CASES[name]
    sizes = Case(sizes=((case.rows, case.keys),), consecutive=case.consecutive)
    data = make(sizes, torch.float32, stored)
    k_KLD, v_KLD = (each[0].double().transpose(0, 1) for each in (data.keys, data.values))
    labels = labels_of(case, data.q_THD, k_KLD.float())
    caches = data.k_cache, data.v_cache
    out = attend(data.q_THD, *caches, data.batch, labels, scale=SCALE, **data.scales)

    total = 0
    for head in range(data.q_THD.shape[1]):
        mask = torch.tensor(
            [
                [seen(case, labels, head, row, key) for key in range(case.keys)]
                for row in range(case.rows)
            ]
        )
        s_TL = data.q_THD[:, head].double() @ k_KLD[head // 3].T * SCALE
        exact = s_TL.masked_fill(~mask, -torch.inf).softmax(1) @ v_KLD[head // 3]
        torch.testing.assert_close(out[:, head].double(), exact, rtol=2e-5, atol=2e-5)
        root = case.keys - case.rows
        near = sum(min(case.recent, root + row + 1) for row in range(case.rows))
        total += int(mask.sum()) - near
    assert int(pairs(labels)) == total


class Weights(TorchDispatchMode):
    """Knows the most logits whose exponentials were taken at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.exp_.default:
            self.most = max(self.most, args[0].numel())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("recent", "tile"), [(7, 200), (30, 600), (64, 1000), (64, 1)])
def test_few_logits_of_the_newest_keys_exist_at_a_time(
    recent: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Sparse("nothing", 64, 128, recent)
    data = make(Case(sizes=((case.rows, case.keys),)), torch.float32)
    labels = labels_of(case, data.q_THD, data.keys[0].transpose(0, 1))

    def attended() -> tuple[Tensor, int]:
        with Weights() as weights:
            out = reference.paged_sparse_prefill(
                data.q_THD, data.k_cache, data.v_cache, data.batch, labels, scale=SCALE
            )
        return out, weights.most

    whole, most = attended()
    monkeypatch.setattr(reference, "_TILE_ELEMENTS", tile)
    parts, fewest = attended()
    torch.testing.assert_close(parts, whole, rtol=2e-5, atol=2e-5)
    one_row = data.q_THD.shape[1] * recent
    assert most > max(tile, one_row)
    assert fewest <= max(tile, one_row)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["kept", "hashed"])
def test_triton_equals_torch_on_a_gpu(form: str, dtype: torch.dtype) -> None:
    case = Sparse(form, 1000, 3000, 512)
    data = make(Case(sizes=((case.rows, case.keys),)), dtype)
    labels = labels_of(case, data.q_THD, data.keys[0].transpose(0, 1).to(dtype))
    expected = reference.paged_sparse_prefill(
        data.q_THD, data.k_cache, data.v_cache, data.batch, labels, scale=SCALE
    )
    q, k, v = (each.cuda() for each in (data.q_THD, data.k_cache, data.v_cache))
    batch = PagedBatch(
        page_size=data.batch.page_size,
        query_starts=data.batch.query_starts,
        kv_lengths=data.batch.kv_lengths,
        tables=data.batch.tables,
        slots=data.batch.slots.cuda(),
    )
    there = Labels(
        queries_TH=labels.queries_TH.cuda(),
        keys_KL=labels.keys_KL.cuda(),
        own=labels.own,
        recent=labels.recent,
    )
    out = triton.paged_sparse_prefill(q, k, v, batch, there, scale=SCALE)
    torch.testing.assert_close(out.cpu(), expected, rtol=2e-2, atol=2e-2)


def test_light_keys_are_those_of_least_norm_in_their_block() -> None:
    keys = 2 * BLOCK + 9
    k_KLD = torch.randn(2, keys, 16)
    found = light(k_KLD, 0.1, 3)
    for head in range(2):
        norms = k_KLD[head].norm(dim=-1).tolist()
        wanted = {0, 1, 2}
        for begin in (0, BLOCK):
            block = sorted(range(begin, begin + BLOCK), key=norms.__getitem__)
            wanted |= set(block[:7])  # a tenth of 64, rounded up
        assert set(found[head].nonzero()[:, 0].tolist()) == wanted


def test_light_keys_do_not_depend_on_later_ones() -> None:
    k_KLD = torch.randn(2, 5 * BLOCK, 16)
    whole = light(k_KLD, 0.25, 4)
    for keys in (BLOCK, 2 * BLOCK + 5, 4 * BLOCK):
        part = light(k_KLD[:, :keys], 0.25, 4)
        full = keys // BLOCK * BLOCK
        assert torch.equal(part[:, :full], whole[:, :full])
    assert int(light(k_KLD[:, : BLOCK - 1], 0.25, 0).sum()) == 0


def test_centred_keys_fall_into_more_buckets() -> None:
    k_KLD = torch.randn(1, 400, 16) + 9.0 * torch.randn(16)
    rotations = torch.randn(1, 16, 4)
    q_THD = torch.randn(1, 1, 16)

    def most(centres: Tensor | None) -> int:
        labels = hashed(q_THD, k_KLD, rotations, centres_KD=centres)
        return int(labels.keys_KL[0].bincount().max())

    assert most(None) > 390
    assert most(k_KLD[:, :100].mean(1)) < 200


def test_parts_merge_by_their_sums() -> None:
    s, v = torch.randn(1, 1, 9, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)

    def part(of: slice) -> tuple[Tensor, Tensor]:
        out = s[..., of].softmax(-1) @ v[of]
        return out.float(), (s[..., of].logsumexp(-1) / torch.tensor(2.0).log()).float()

    whole = merged(*part(slice(0, 4)), *part(slice(4, 9)))
    torch.testing.assert_close(whole, (s.softmax(-1) @ v).float())
    nothing = torch.zeros(1, 1, 4), torch.full((1, 1), float("-inf"))
    torch.testing.assert_close(merged(*nothing, *part(slice(4, 9))), part(slice(4, 9))[0])


def test_the_last_block_is_kept_by_nobody() -> None:
    labels = kept(torch.ones(5, 1, dtype=torch.bool), light(torch.randn(1, 70, 8), 0.5, 0))
    assert (labels.keys_KL[0, BLOCK:] == NO_KEY).all()
