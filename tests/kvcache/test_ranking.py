"""The order in which keys go, whatever numbers a policy returns."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.kvcache.attention_record import AttentionRecord
from penstock.kvcache.base import CachePolicy, HeldKeys, Observation, Retention
from penstock.kvcache.eviction_state import EvictionState
from penstock.kvcache.ranking import ranks_of, scores_of
from penstock.registry import Choice, NoParameters

LAYERS, HEADS, KEYS = 2, 3, 40
CPU = torch.device("cpu")


class Given(CachePolicy[NoParameters]):
    """Scores from outside."""

    name = "given"
    parameters = NoParameters
    summary = "for tests"

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def retention(self, parameters: NoParameters, prompt_tokens: int) -> Retention:
        return Retention(heavy=4, recent=2)

    def score(self, held: HeldKeys, parameters: NoParameters) -> Tensor:
        return self.scores


def no_keys(layer: int) -> Tensor:
    raise AssertionError("nobody asked for keys")


def held_keys() -> HeldKeys:
    orders = torch.stack([torch.randperm(KEYS) for _ in range(LAYERS * HEADS)])
    positions = orders.view(LAYERS, HEADS, KEYS).int()
    attention = torch.rand(LAYERS, HEADS, KEYS)
    return HeldKeys(
        length=KEYS, positions=positions, attention=attention, first_observed=0, keys=no_keys
    )


def scores_from(scores: Tensor, held: HeldKeys) -> Tensor:
    return scores_of(Choice(method=Given(scores), parameters=NoParameters()), held)


def test_order_is_that_of_scores_then_of_age_then_what_stays() -> None:
    held = held_keys()
    scores = torch.randn(LAYERS, HEADS, KEYS) * 10.0 ** torch.randint(-30, 30, (KEYS,))
    scores[..., ::5] = 0.0
    scores[..., 1::5] = -0.0
    scores[..., 2::10] = 7.25
    retention = Retention(heavy=9, recent=4, sink=3)
    windows = torch.tensor([2**30, 20])[:, None, None]
    ranks = ranks_of(
        scores_from(scores, held), held.positions, length=KEYS, retention=retention, windows=windows
    )
    for layer in range(LAYERS):
        for head in range(HEADS):
            positions = held.positions[layer, head].tolist()
            given = dict(zip(positions, scores[layer, head].tolist(), strict=True))

            def key(p: int, layer: int = layer, given: dict[int, float] = given) -> Any:
                if p >= KEYS - 4 or p < 3:
                    return (2, 0.0, p)
                if layer == 1 and KEYS - p >= 20:
                    return (0, 0.0, p)
                return (1, given[p], p)

            order = [positions[i] for i in ranks[layer, head].argsort().tolist()]
            assert order == sorted(positions, key=key)
            assert ranks[layer, head].unique().numel() == KEYS


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_no_score_evicts_what_must_stay(odd: float) -> None:
    held = held_keys()
    scores = torch.full((LAYERS, HEADS, KEYS), odd)
    ranks = ranks_of(
        scores_from(scores, held),
        held.positions,
        length=KEYS,
        retention=Retention(heavy=3, recent=2, sink=3),
        windows=torch.full((LAYERS, 1, 1), 2**30),
    )
    kept = held.positions.gather(-1, ranks.topk(5, dim=-1).indices).sort(dim=-1).values
    assert (kept == torch.tensor([0, 1, 2, KEYS - 2, KEYS - 1])).all()


def test_scores_broadcast_and_are_converted() -> None:
    held = held_keys()
    scores = torch.rand(LAYERS, 1, KEYS, dtype=torch.float64)
    found = scores_from(scores, held)
    assert found.shape == (LAYERS, HEADS, KEYS)
    assert found.dtype == torch.float32
    assert torch.equal(found, scores.float().expand(LAYERS, HEADS, KEYS))
    with pytest.raises(RuntimeError):
        scores_from(torch.rand(LAYERS, HEADS, KEYS - 1), held)


@pytest.mark.parametrize("half_life", [None, 0, 5])
def test_attention_that_is_observed(half_life: int | None) -> None:
    """A prompt in two chunks, then rows one by one and two at once, against sums in Python."""

    class Observing(Given):
        def observe(self, parameters: NoParameters) -> Observation:
            return Observation(half_life=half_life, prompt_window=3)

    choice: Choice[Any] = Choice(method=Observing(torch.zeros(1)), parameters=NoParameters())
    state = EvictionState(
        choice, Retention(heavy=90, recent=9), kv_heads=1, windows=[None], device=CPU
    )
    prompt, rows = 6, torch.rand(10, 10).tril()
    assert not state.counts(prompt, 2)
    assert state.reusable(prompt, 5) == 3
    state.add_unscored(2)
    votes = state.votes(prompt, 4)
    record = AttentionRecord(depths=[0, 1, 2, 3], votes=votes)
    record.weights.append((votes @ rows[2:6, :6])[None])
    state.add_prompt(record, 4)
    for first, count in ((6, 1), (7, 2), (9, 1)):
        record = AttentionRecord(depths=list(range(count)), votes=None)
        record.weights.append(rows[first : first + count, : first + count][None])
        state.add_rows(record, list(range(count)))
    for key in range(10):
        expected = 0.0
        for row in range(3, 10):
            share = 1.0 if half_life is None else float(row == 9)
            if half_life:
                share = 0.5 ** ((9 - row) / half_life)
            expected += share * float(rows[row, key])
        assert float(state.mass[0, 0, key]) == pytest.approx(expected, rel=1e-5)
