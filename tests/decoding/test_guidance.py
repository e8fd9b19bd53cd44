"""The formula of guidance, row by row."""

import math
import random

import pytest
import torch

from penstock.decoding.guidance import CFG, CfgParameters


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(x) for x in row))
    return [x - total for x in row]


@pytest.mark.parametrize("seed", range(5))
def test_combine_is_the_formula(seed: int) -> None:
    chooser = random.Random(seed)
    rows, vocab = 4, 9
    logits = [[[chooser.gauss(0, 2) for _ in range(vocab)] for _ in range(rows)] for _ in range(2)]
    parameters = [
        CfgParameters(scale=chooser.uniform(0, 4), plausibility=chooser.choice([0.0, 0.2, 1.0]))
        for _ in range(rows)
    ]
    found = CFG.combine(torch.tensor(logits), parameters).tolist()
    for row, one in enumerate(parameters):
        c, u = log_softmax(logits[0][row]), log_softmax(logits[1][row])
        floor = max(c) + math.log(one.plausibility) if one.plausibility else -math.inf
        for token in range(vocab):
            guided = u[token] + one.scale * (c[token] - u[token])
            if c[token] >= floor - 1e-5:
                assert found[row][token] == pytest.approx(guided, abs=1e-4)
            else:  # behind all others, and in the same order
                assert found[row][token] == pytest.approx(guided - 1e5, abs=0.02)


def test_a_row_does_not_depend_on_the_others() -> None:
    logits = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(1))
    parameters = [CfgParameters(scale=float(i)) for i in range(6)]
    together = CFG.combine(logits, parameters)
    for row in range(6):
        alone = CFG.combine(logits[:, row : row + 1], parameters[row : row + 1])
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": -1.0}, "set allow_negative"),
        ({"scale": float("nan")}, "finite"),
        ({"scale": 101.0}, "less than or equal to 100"),
        ({"plausibility": 1.5}, "less than or equal to 1"),
        ({"negative_prompt": ""}, "at least 1 character"),
        ({"negative_messages": []}, "at least 1 item"),
        ({"negative_messages": [{"role": "tool", "content": "x"}]}, "match pattern"),
        ({"negative_prompt": "x", "negative_messages": [{"role": "user", "content": "x"}]}, "both"),
        ({"guidance": 2}, "not permitted"),
    ],
)
def test_parameters_are_bounded(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CfgParameters.model_validate(fields)


def test_what_a_model_rules_out_is_no_nan() -> None:
    """Padded vocabularies have minus infinity in both contexts; NaN of either context stays NaN."""
    logits = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(2))
    logits[:, 0, 5] = float("-inf")
    logits[1, 0, 6] = float("-inf")
    logits[1, 1, 2] = float("nan")
    found = CFG.combine(logits, [CfgParameters(scale=1.5, plausibility=0.1)] * 3)
    assert found[0, 5] == float("-inf")
    assert bool(found[0, [0, 1, 2, 3, 4, 6, 7]].isfinite().all())
    assert bool(found[1].isnan().all())
    assert bool(found[2].isfinite().all())
