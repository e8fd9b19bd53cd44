"""Paged keys and values with known contents, and dense attention over them in any precision.

Shape suffixes: T rows, H query heads, K KV heads, L keys, D head size.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from penstock.kernels.batch import PagedBatch
from penstock.kernels.kv_write.reference import kv_write
from penstock.kernels.quantise import LARGEST


@dataclass(frozen=True, kw_only=True)
class Case:
    """(rows, keys) per sequence, and the options of the call."""

    sizes: tuple[tuple[int, int], ...]
    kv_heads: int = 2
    group: int = 3
    size: int = 16
    value_size: int = 16
    page: int = 16
    scale: float = 0.3
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    consecutive: bool = False
    trees: bool = False


MIXED = ((1, 1), (1, 63), (5, 5), (7, 40), (1, 130), (33, 33))
CASES = {
    "mixed": Case(sizes=MIXED),
    "consecutive": Case(sizes=MIXED, consecutive=True),
    "one-token": Case(sizes=((1, 1),)),
    "decode-long": Case(sizes=((1, 1000), (1, 16), (1, 17)), consecutive=True),
    "group-7": Case(sizes=MIXED, group=7),
    "group-1": Case(sizes=MIXED, group=1, kv_heads=4),
    "page-1": Case(sizes=((3, 9), (1, 4)), page=1),
    "page-5": Case(sizes=MIXED, page=5),
    "odd-head": Case(sizes=MIXED, size=20, value_size=12),
    "window": Case(sizes=MIXED, window=8),
    "window-1": Case(sizes=MIXED, window=1),
    "window-wide": Case(sizes=MIXED, window=500, consecutive=True),
    "softcap": Case(sizes=MIXED, softcap=2.0),
    "sinks": Case(sizes=MIXED, sinks=True),
    "all": Case(sizes=MIXED, window=20, softcap=2.0, sinks=True),
    "trees": Case(sizes=MIXED, trees=True),
    "trees-window": Case(sizes=MIXED, window=8, trees=True, consecutive=True),
    "trees-all": Case(sizes=MIXED, window=20, softcap=2.0, sinks=True, trees=True),
    "no-rows": Case(sizes=((0, 12), (2, 20), (0, 3))),
}


@dataclass(frozen=True, kw_only=True)
class Data:
    """Tensors of a case, paged and dense."""

    q_THD: Tensor
    k_cache: Tensor
    v_cache: Tensor
    batch: PagedBatch
    keys: list[Tensor]
    values: list[Tensor]
    sinks_H: Tensor | None
    scales: dict[str, Tensor]


def make(case: Case, dtype: torch.dtype, stored: torch.dtype | None = None) -> Data:
    """`stored`: of the caches, where it is another one; then keys and values are what they hold."""
    chooser = random.Random(3)
    pages_needed = [-(-length // case.page) for _, length in case.sizes]
    order = list(range(sum(pages_needed) + 8))
    if not case.consecutive:
        chooser.shuffle(order)
    shape = (case.kv_heads, len(order), case.page)
    k_cache = torch.empty(*shape, case.size, dtype=stored or dtype).transpose(0, 1)
    v_cache = torch.empty(*shape, case.value_size, dtype=stored or dtype).transpose(0, 1)
    scales: dict[str, Tensor] = {}
    if stored in LARGEST:
        names = ("k_scales", "v_scales")
        scales = {name: torch.empty(*shape, 1).transpose(0, 1) for name in names}
    starts, lengths, tables, slots = [0], [], [], []
    keys, values, queries = [], [], []
    for (rows, length), count in zip(case.sizes, pages_needed, strict=True):
        table = [order.pop(0) for _ in range(count)]
        k = torch.randn(length, case.kv_heads, case.size, dtype=torch.float64)
        v = torch.randn(length, case.kv_heads, case.value_size, dtype=torch.float64)
        at = [table[i // case.page] * case.page + i % case.page for i in range(length)]
        slots_of = torch.tensor(at, dtype=torch.int64)
        kv_write(k.to(dtype), v.to(dtype), k_cache, v_cache, slots_of, **scales)
        if stored is not None:
            k = held(k_cache, scales.get("k_scales"), at)
            v = held(v_cache, scales.get("v_scales"), at)
        heads = case.kv_heads * case.group
        queries.append(torch.randn(rows, heads, case.size, dtype=torch.float64))
        starts.append(starts[-1] + rows)
        lengths.append(length)
        tables.append(table)
        slots += at[length - rows :]
        keys.append(k)
        values.append(v)
    trees: dict[int, list[int]] = {}
    if case.trees:
        for i, (rows, _) in enumerate(case.sizes):
            trees[i] = [chooser.randrange(-1, row) for row in range(rows - 1)]
    return Data(
        q_THD=torch.cat(queries).to(dtype),
        k_cache=k_cache,
        v_cache=v_cache,
        batch=PagedBatch(
            page_size=case.page,
            query_starts=starts,
            kv_lengths=lengths,
            tables=tables,
            slots=torch.tensor(slots),
            trees=trees,
        ),
        keys=keys,
        values=values,
        sinks_H=torch.randn(case.kv_heads * case.group, dtype=dtype) if case.sinks else None,
        scales=scales,
    )


def held(cache: Tensor, scales: Tensor | None, at: list[int]) -> Tensor:
    """What a cache holds in some slots, float64 `[L, Hkv, D]`, element by element."""
    page = cache.shape[2]
    rows = torch.stack([cache[slot // page, :, slot % page] for slot in at]).double()
    if scales is None:
        return rows
    return rows * torch.stack([scales[slot // page, :, slot % page] for slot in at]).double()


def dense(case: Case, data: Data, dtype: torch.dtype) -> Tensor:
    """The formula, one row and head at a time, in `dtype`."""
    out = torch.zeros(data.q_THD.shape[0], data.q_THD.shape[1], case.value_size, dtype=dtype)
    for i, (rows, length) in enumerate(case.sizes):
        k, v = data.keys[i].to(dtype), data.values[i].to(dtype)
        for row in range(rows):
            at = data.batch.query_starts[i] + row
            seen = seen_keys(case, data.batch, i, rows, length, row)
            for head in range(data.q_THD.shape[1]):
                q = data.q_THD[at, head].to(dtype)
                s = (k[seen, head // case.group] @ q) * case.scale
                if case.softcap is not None:
                    s = case.softcap * torch.tanh(s / case.softcap)
                if data.sinks_H is not None:
                    s = torch.cat([s, data.sinks_H[head : head + 1].to(dtype)])
                p = s.softmax(0)[: len(seen)]
                out[at, head] = p @ v[seen, head // case.group]
    return out


def seen_keys(
    case: Case, batch: PagedBatch, index: int, rows: int, length: int, row: int
) -> list[int]:
    """Keys that a row sees: what came before all rows, and its own path; within the window."""
    root = length - rows
    position_of = {key: key for key in range(length)}
    if index in batch.trees:
        path = [row]
        while path[-1] > 0:
            path.append(batch.trees[index][path[-1] - 1] + 1)
        # The root is row 0; how far a row of the path is from it is its place on the path.
        for depth, one in enumerate(reversed(path)):
            position_of[root + one] = root + depth
        seen = [*range(root), *(root + one for one in reversed(path))]
    else:
        seen = list(range(root + row + 1))
    own = position_of[root + row]
    return [key for key in seen if case.window is None or own - position_of[key] < case.window]


def called(
    kernel: Callable[..., Any], case: Case, data: Data, device: str = "cpu", **more: Any
) -> Any:
    """What a kernel makes of a case on a device."""
    return kernel(
        data.q_THD.to(device),
        moved(data.k_cache, device),
        moved(data.v_cache, device),
        replace(data.batch, slots=data.batch.slots.to(device)),
        scale=case.scale,
        window=case.window,
        softcap=case.softcap,
        sinks_H=None if data.sinks_H is None else data.sinks_H.to(device),
        **{name: moved(scales, device) for name, scales in data.scales.items()},
        **more,
    )


def moved(cache: Tensor, device: str) -> Tensor:
    """A copy, stored head by head there too."""
    return cache.transpose(0, 1).contiguous().to(device).transpose(0, 1)
