"""A row's bits depend on its context alone, however long it is and however many rows come with it.

Kind: promises that hold while contexts are short. Kernels cut long contexts into splits, and how
may follow from the number of rows: contexts of 2,000 keys are several splits of each backend. The
same over HTTP: tests/server/test_one_order.py.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.kernels.batch import PagedBatch
from penstock.kernels.native.library import Library, builds
from penstock.kernels.paged_attention.native import launcher
from penstock.kernels.scored_attention.native import launcher as scored_launcher
from tests.kernels.paged import Case, Data, called, make

KEYS = 2000
OPTIONS: dict[str, tuple[dict[str, Any], torch.dtype | None]] = {
    "plain": ({}, None),
    "window": ({"window": 900}, None),
    "sinks": ({"sinks": True, "softcap": 3.0}, torch.bfloat16),
    "int8": ({}, torch.int8),
    "fp8": ({}, torch.float8_e4m3fn),
}
BUILDS = builds()[0]


def last(data: Data, rows: int, *, company: bool = False) -> Data:
    """The same context with its last `rows` rows, alone or beside a neighbour with 5 rows."""
    starts, lengths = ([0, 5, 5 + rows], [KEYS - 300, KEYS]) if company else ([0, rows], [KEYS])
    batch = PagedBatch(
        page_size=data.batch.page_size,
        query_starts=starts,
        kv_lengths=lengths,
        tables=data.batch.tables * len(lengths),
        slots=data.batch.slots[:1].expand(starts[-1]),
    )
    q_THD = data.q_THD[-rows:]
    return replace(data, q_THD=torch.cat([data.q_THD[: starts[-1] - rows], q_THD]), batch=batch)


def check(attend: Callable[..., Tensor], case: Case, data: Data, counts: tuple[int, ...]) -> None:
    """The last rows have the same bits in chunks of other sizes, and, the last time, in company."""
    whole = called(attend, case, data, "cpu")
    for rows in counts:
        found = called(attend, case, last(data, rows, company=rows == counts[-1]), "cpu")
        assert torch.equal(found[-rows:], whole[-rows:]), rows


@contextmanager
def torch_threads(count: int) -> Generator[None]:
    """Compiled kernels take as many threads as torch has."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", OPTIONS)
def test_triton_without_splits(name: str) -> None:
    """As `--deterministic` runs it: chunks, drafts and single rows are of one class."""
    triton = pytest.importorskip("penstock.kernels.paged_attention.triton")
    options, stored = OPTIONS[name]
    case = Case(sizes=((70, KEYS),), kv_heads=1, group=1, size=8, value_size=8, **options)
    data = make(case, torch.float32, stored)
    check(partial(triton.paged_attention, split=False), case, data, (66, 1))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("build", BUILDS, ids=[build.name for build in BUILDS])
def test_compiled(build: Library, name: str) -> None:
    """With any number of threads: few rows' splits are shared among them, many rows' are not."""
    options, stored = OPTIONS[name]
    case = Case(sizes=((300, KEYS),), **options)
    data = make(case, torch.float32, stored)
    found: list[Tensor] = []
    for threads in (1, 2, 5):
        with torch_threads(threads):
            attend = launcher(build)
        check(attend, case, data, (257, 66, 16, 1))
        found.append(called(attend, case, data, "cpu"))
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("build", BUILDS, ids=[build.name for build in BUILDS])
def test_compiled_with_scores(build: Library) -> None:
    """What a row gave each key, too."""
    case = Case(sizes=((60, KEYS),))
    data = make(case, torch.float32)
    found: list[tuple[Tensor, Tensor]] = []
    for threads in (1, 5):
        with torch_threads(threads):
            scored = scored_launcher(build)
        for rows in (60, 17, 1):
            one = last(data, rows)
            how = {"scale": case.scale}
            out, (weights,) = scored(one.q_THD, one.k_cache, one.v_cache, one.batch, **how)
            found.append((out[-1], weights[:, -1]))
    for out, weights in found:
        assert torch.equal(out, found[0][0])
        assert torch.equal(weights, found[0][1])
