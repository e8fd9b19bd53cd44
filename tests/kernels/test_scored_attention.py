"""`scored_attention` against the formula, one row, head and key at a time."""

import math
import random

import pytest
import torch

from penstock.kernels.scored_attention.reference import scored_attention


@pytest.mark.parametrize("softcap", [None, 2.0], ids=["plain", "softcap"])
@pytest.mark.parametrize("with_sinks", [False, True], ids=["no-sinks", "sinks"])
@pytest.mark.parametrize("group", [1, 4, 8])
def test_equals_the_formula(group: int, with_sinks: bool, softcap: float | None) -> None:
    chooser = random.Random(group)
    generator = torch.Generator().manual_seed(group)
    rows, keys, kv_heads, size, value_size, scale = 3, 7, 2, 4, 5, 0.4
    heads = kv_heads * group
    q = torch.randn(rows, heads, size, generator=generator)
    k = torch.randn(kv_heads, keys, size, generator=generator)
    v = torch.randn(kv_heads, keys, value_size, generator=generator)
    sinks = torch.randn(heads, generator=generator) if with_sinks else None
    seen = torch.tensor(
        [[[chooser.random() < 0.6 or key == 0 for key in range(keys)] for _ in range(rows)]]
        * kv_heads
    )
    out, weights = scored_attention(q, k, v, seen, scale=scale, softcap=softcap, sinks_H=sinks)
    expected_weights = torch.zeros(kv_heads, rows, keys, dtype=torch.float64)
    for row in range(rows):
        for head in range(heads):
            of = head // group
            scores: dict[int, float] = {}
            for key in range(keys):
                if bool(seen[of, row, key]):
                    score = scale * float(q[row, head].double() @ k[of, key].double())
                    scores[key] = softcap * math.tanh(score / softcap) if softcap else score
            total = sum(map(math.exp, scores.values()))
            if sinks is not None:
                total += math.exp(float(sinks[head]))
            expected = torch.zeros(value_size, dtype=torch.float64)
            for key, score in scores.items():
                share = math.exp(score) / total
                expected += share * v[of, key].double()
                expected_weights[of, row, key] += share
            assert torch.allclose(out[row, head].double(), expected, atol=1e-5)
    assert torch.allclose(weights.double(), expected_weights, atol=1e-5)
    if sinks is None:
        assert torch.allclose(weights.sum(-1), torch.full((kv_heads, rows), float(group)))


def test_rows_of_bfloat16_are_summed_in_float32() -> None:
    q = torch.zeros(1, 1, 4, dtype=torch.bfloat16)
    k = torch.zeros(1, 3000, 4, dtype=torch.bfloat16)
    v = torch.ones(1, 3000, 4, dtype=torch.bfloat16)
    out, weights = scored_attention(q, k, v, torch.ones(1, 1, 3000, dtype=torch.bool), scale=1.0)
    assert out.dtype == torch.bfloat16
    assert weights.dtype == torch.float32
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
