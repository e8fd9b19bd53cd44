"""What keys receive, in float64, for cases of rows over paged keys."""

import pytest
import torch
from torch import Tensor

from tests.kernels.paged import Case, Data, seen_keys

MIXED = ((1, 1), (1, 63), (5, 20), (1, 300))
SCORED = {
    "mixed": Case(sizes=MIXED),
    "group-7": Case(sizes=MIXED, group=7, kv_heads=1),
    "all": Case(sizes=MIXED, window=20, softcap=2.0, sinks=True),
    "trees": Case(sizes=((6, 40), (3, 3), (1, 9), (34, 60)), kv_heads=1, window=30, trees=True),
    "odd-head": Case(sizes=((3, 20), (1, 40)), size=20, value_size=12),
    "chunk": Case(sizes=((1, 5), (66, 70)), kv_heads=1, group=2),
}


EACH = pytest.mark.parametrize(
    ("name", "stored"),
    [*((name, None) for name in SCORED), ("all", torch.int8), ("all", torch.float8_e4m3fn)],
    ids=str,
)


def weights(case: Case, data: Data) -> list[Tensor]:
    """`[Hkv, rows, keys]` of each sequence, one row and head at a time."""
    found: list[Tensor] = []
    for i, (rows, length) in enumerate(case.sizes):
        given = torch.zeros(case.kv_heads, rows, length, dtype=torch.float64)
        for row in range(rows):
            seen = seen_keys(case, data.batch, i, rows, length, row)
            for head in range(case.kv_heads * case.group):
                kv_head = head // case.group
                q = data.q_THD[data.batch.query_starts[i] + row, head].double()
                s = (data.keys[i][seen, kv_head] @ q) * case.scale
                if case.softcap is not None:
                    s = case.softcap * torch.tanh(s / case.softcap)
                if data.sinks_H is not None:
                    s = torch.cat([s, data.sinks_H[head : head + 1].double()])
                given[kv_head, row, seen] += s.softmax(0)[: len(seen)]
        found.append(given)
    return found
