"""Sequences with masks and hashes, and dense masked attention over them in float64.

Shape suffixes: T rows, H query heads, K KV heads, L keys, D head size.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from penstock.kernels.sparse_prefill.labels import NO_KEY, NO_QUERY, Labels, hashed, kept


@dataclass(frozen=True, kw_only=True)
class Case:
    """`rows`: the last ones of `keys`. `part`: of queries and of keys that masks keep, on average.

    `buckets`: of hashes; 0 for those of one bucket alone.
    """

    form: Literal["kept", "hashed", "both"]
    rows: int
    keys: int
    kv_heads: int = 2
    group: int = 3
    size: int = 16
    value_size: int = 16
    part: tuple[float, float] = (0.5, 0.5)
    buckets: int = 8
    packed: bool = False


CASES = {
    "kept": Case(form="kept", rows=37, keys=37),
    "kept-chunk": Case(form="kept", rows=21, keys=63, group=7, size=64, value_size=64),
    "kept-few-keys": Case(form="kept", rows=50, keys=50, part=(0.7, 0.06), group=1),
    "kept-no-key": Case(form="kept", rows=19, keys=33, part=(0.5, 0.0)),
    "kept-no-query": Case(form="kept", rows=19, keys=19, part=(0.0, 0.5)),
    "kept-all": Case(form="kept", rows=33, keys=49, part=(1.0, 1.0)),
    "kept-packed": Case(form="kept", rows=31, keys=45, packed=True),
    "hashed": Case(form="hashed", rows=65, keys=65, group=1),
    "hashed-chunk": Case(form="hashed", rows=23, keys=47, group=7, size=80, value_size=64),
    "hashed-many": Case(form="hashed", rows=40, keys=40, buckets=64),
    "hashed-alike": Case(form="hashed", rows=33, keys=33, buckets=0),
    "hashed-packed": Case(form="hashed", rows=31, keys=45, packed=True),
    "both": Case(form="both", rows=35, keys=41, buckets=4),
    "one": Case(form="hashed", rows=1, keys=1),
    "one-dropped": Case(form="kept", rows=1, keys=1, part=(1.0, 0.0)),
    "no-rows": Case(form="kept", rows=0, keys=5),
}


@dataclass(frozen=True, kw_only=True)
class Data:
    """Inputs; the labels made of them, and independently of those who sees whom `[H, T, L]`."""

    q_THD: Tensor
    k_KLD: Tensor
    v_KLD: Tensor
    labels: Labels
    seen_HTL: Tensor


def make(case: Case, dtype: torch.dtype) -> Data:
    """The case, random but always the same."""
    random = torch.Generator().manual_seed(7)
    heads = case.kv_heads * case.group

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    q_THD = normal(case.rows, heads, case.size)
    k_KLD = normal(case.kv_heads, case.keys, case.size)
    v_KLD = normal(case.kv_heads, case.keys, case.value_size)
    if case.packed:
        q_THD = torch.cat([q_THD, normal(case.rows, 2, case.size)], 1)[:, :heads]
        k_KLD = torch.cat([normal(case.kv_heads, 16, case.size), k_KLD], 1)[:, 16:]
        v_KLD = v_KLD.transpose(0, 1).contiguous().transpose(0, 1)

    keep_TH = torch.rand(case.rows, heads, generator=random) < case.part[0]
    keep_KL = torch.rand(case.kv_heads, case.keys, generator=random) < case.part[1]
    rotations = torch.randn(case.kv_heads, case.size, max(1, case.buckets // 2), generator=random)
    if case.buckets == 0:
        k_KLD[..., 0], q_THD[..., 0], rotations = 3.0, 3.0, torch.zeros_like(rotations)
        rotations[:, 0] = 1.0
    labels = kept(keep_TH, keep_KL) if case.form == "kept" else hashed(q_THD, k_KLD, rotations)
    if case.form == "both":
        labels = Labels(
            queries_TH=labels.queries_TH.where(keep_TH, NO_QUERY),
            keys_KL=labels.keys_KL.where(keep_KL, NO_KEY),
            own=True,
        )
    seen_HTL = _seen(case, q_THD, k_KLD, keep_TH, keep_KL, rotations)
    return Data(q_THD=q_THD, k_KLD=k_KLD, v_KLD=v_KLD, labels=labels, seen_HTL=seen_HTL)


def _seen(
    case: Case, q_THD: Tensor, k_KLD: Tensor, keep_TH: Tensor, keep_KL: Tensor, rotations: Tensor
) -> Tensor:
    """By the definitions, pair by pair."""
    seen = torch.zeros(q_THD.shape[1], case.rows, case.keys, dtype=torch.bool)
    for head in range(q_THD.shape[1]):
        kv_head = head // case.group
        rotation = rotations[kv_head].double()
        q_buckets = [_bucket(q, rotation) for q in q_THD[:, head].double()]
        k_buckets = [_bucket(k, rotation) for k in k_KLD[kv_head].double()]
        for row in range(case.rows):
            place = case.keys - case.rows + row
            for key in range(place + 1):
                yes = True
                if case.form != "hashed":
                    yes = bool(keep_KL[kv_head, key])
                if case.form != "kept":
                    yes = (yes and q_buckets[row] == k_buckets[key]) or key == place
                if case.form != "hashed":
                    yes = yes and bool(keep_TH[row, head])
                seen[head, row, key] = yes
    return seen


def _bucket(x_D: Tensor, rotation_DR: Tensor) -> tuple[int, bool]:
    """The axis of the rotated space that is closest, and which of its ends."""
    rotated = (x_D @ rotation_DR).tolist()
    nearest = max(range(len(rotated)), key=lambda axis: abs(rotated[axis]))
    return nearest, rotated[nearest] < 0


def dense(data: Data, scale: float) -> Tensor:
    """In float64, `[T, H, Dv]`; rows that see nothing are zero."""
    rows, heads, _ = data.q_THD.shape
    out = torch.zeros(rows, heads, data.v_KLD.shape[2], dtype=torch.float64)
    group = heads // data.k_KLD.shape[0]
    for head in range(heads):
        k, v = data.k_KLD[head // group].double(), data.v_KLD[head // group].double()
        weights = torch.exp(data.q_THD[:, head].double() @ k.T * scale) * data.seen_HTL[head]
        total = weights.sum(1, keepdim=True)
        out[:, head] = torch.where(total > 0, weights @ v / total.clamp(min=1e-300), 0.0)
    return out
