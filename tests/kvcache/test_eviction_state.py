"""Eviction against a simulation in plain Python, straight from the rule."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.kernels.evict.reference import evict
from penstock.kvcache.attention_record import AttentionRecord
from penstock.kvcache.base import Retention
from penstock.kvcache.eviction_state import EvictionState
from penstock.registry import Choice
from tests.engine.test_eviction import h2o, window

LAYERS, HEADS = 2, 3
CPU = torch.device("cpu")
Step = Callable[[EvictionState, list["Simulated"], object], None]


@dataclass
class Simulated:
    """One head: positions held, and their masses; victims go when the interval is full."""

    choice: Choice[Any]
    masses: dict[int, float] = field(default_factory=dict)
    doomed: list[int] = field(default_factory=list)
    length: int = 0
    evicts: bool = False

    def sees(self) -> list[int]:
        """Positions that the next token sees, itself included."""
        gone = self.doomed[:1] if self.evicts and self.empty == 0 else []
        return [p for p in self.masses if p not in gone] + [self.length]

    @property
    def retention(self) -> Retention:
        return retention_of(self.choice)

    @property
    def empty(self) -> int:
        return self.retention.slots - len(self.masses) if self.evicts else 1

    def add(self, weights: dict[int, float]) -> None:
        """The next token gave that much attention to each position that it sees."""
        if self.evicts and self.empty == 0:
            del self.masses[self.doomed.pop(0)]
        self.masses[self.length] = 0.0
        self.length += 1
        if score_of(self.choice) == "decay":
            parameters: Any = self.choice.parameters
            for position in self.masses:
                self.masses[position] *= 0.5 ** (1 / parameters.half_life)
        for position, weight in weights.items():
            self.masses[position] += weight
        if self.evicts and len(self.masses) == self.retention.slots and not self.doomed:
            self.doomed = self.worst()[: self.retention.interval]

    def first_eviction(self) -> None:
        if not self.evicts and len(self.masses) > self.retention.keep:
            for position in self.worst()[: len(self.masses) - self.retention.keep]:
                del self.masses[position]
            self.evicts = True

    def worst(self) -> list[int]:
        free = [
            p for p in self.masses if self.retention.sink <= p < self.length - self.retention.recent
        ]
        return sorted(free, key=lambda p: (self.score(p), p))

    def score(self, position: int) -> float:
        if score_of(self.choice) is None:
            return float(position)
        if score_of(self.choice) == "mean":
            return self.masses[position] / (self.length - position)
        return self.masses[position]


def retention_of(choice: Choice[Any]) -> Retention:
    return choice.method.retention(choice.parameters, 1)


def score_of(choice: Choice[Any]) -> str | None:
    return getattr(choice.parameters, "score", None)


def state_of(choice: Choice[Any], *windows: int | None) -> EvictionState:
    return EvictionState(
        choice,
        retention_of(choice),
        kv_heads=HEADS,
        windows=windows or (None,) * LAYERS,
        device=CPU,
    )


def exact(**fields: Any) -> Choice[Any]:
    return h2o(**{"sink": 0, "interval": 1, **fields})


CASES = {
    "paper": exact(heavy=5, recent=4),
    "sinks": exact(heavy=6, recent=3, sink=2),
    "interval-4": exact(heavy=5, recent=4, interval=4),
    "interval-16": exact(heavy=4, recent=6, sink=1, interval=16),
    "mean": exact(heavy=5, recent=4, interval=3, score="mean"),
    "decay": exact(heavy=5, recent=4, interval=2, score="decay", half_life=6),
    "window": window(recent=6, sink=2, interval=2),
    "all-recent": exact(heavy=0, recent=7),
}
BY_KERNEL = {
    **{name: CASES[name] for name in ("paper", "sinks", "all-recent")},
    "window-1": window(recent=6, sink=2, interval=1),
}
PAGE = 4


@pytest.mark.parametrize("at_once", [False, True], ids=["when-verified", "at-once"])
@pytest.mark.parametrize("prompt", [1, 6, 30])
@pytest.mark.parametrize("name", CASES)
def test_the_kept_set_is_that_of_the_rule(name: str, prompt: int, at_once: bool) -> None:
    run(name, CASES[name], prompt, step_at_once if at_once else step)


@pytest.mark.parametrize("prompt", [1, 30])
@pytest.mark.parametrize("name", BY_KERNEL)
def test_a_kernel_chooses_the_same_victims(name: str, prompt: int) -> None:
    assert state_of(BY_KERNEL[name]).one_at_a_time
    run(name, BY_KERNEL[name], prompt, step_by_kernel)


def test_what_the_kernel_does_not_know() -> None:
    """More victims at once, means, decay, windows of the model; by age, windows do not matter."""
    names = ("interval-4", "mean", "decay", "window")
    assert not any(state_of(CASES[name]).one_at_a_time for name in names)
    others = exact(heavy=4, recent=4, score="mean"), exact(heavy=4, recent=4, score="decay")
    assert not any(state_of(other).one_at_a_time for other in others)
    for name, expected in (("paper", False), ("window-1", True)):
        assert state_of(BY_KERNEL[name], None, None).one_at_a_time
        eviction_state = state_of(BY_KERNEL[name], None, 100)
        assert eviction_state.one_at_a_time == expected
        assert eviction_state.fork().one_at_a_time == expected


def run(name: str, choice: Choice[Any], prompt: int, stepped: Step) -> None:
    """A prompt and 60 tokens; the first ones, and all that precede the move, when verified."""
    chooser = random.Random(f"{name} {prompt}")
    eviction_state = state_of(choice)
    heads = [Simulated(choice) for _ in range(LAYERS * HEADS)]

    def weights_of(head: Simulated) -> dict[int, float]:
        # Multiples of 1/64 add up exactly; some are equal, so that ties occur.
        # Where nothing is scored the engine gives no weights either, but to draft tokens.
        counts = score_of(choice) is not None or stepped is not step_by_kernel
        return {p: chooser.randrange(8) / 64 if counts else 0.0 for p in head.sees()}

    given = [[weights_of_and_add(head, weights_of) for _ in range(prompt)] for head in heads]
    matrix = torch.zeros(LAYERS * HEADS, prompt, prompt)
    for i, rows in enumerate(given):
        for query, weights in enumerate(rows):
            for position, weight in weights.items():
                matrix[i, query, position] = weight
    matrix = matrix.view(LAYERS, HEADS, prompt, prompt)
    votes = torch.ones(prompt)
    if eviction_state.observation is not None:
        votes = eviction_state.votes(prompt, prompt)
    attention_record = AttentionRecord(depths=list(range(prompt)), votes=votes)
    for layer in range(LAYERS):
        attention_record.weights.append(torch.einsum("hqk,q->hk", matrix[layer], votes))
    eviction_state.add_prompt(attention_record, prompt)
    for _ in range(60):
        for head in heads:
            head.first_eviction()
        if eviction_state.must_move:
            eviction_state.move_to_slots(no_keys)
        check(eviction_state, heads)
        (stepped if eviction_state.in_slots else step)(eviction_state, heads, weights_of)
    assert eviction_state.in_slots


def no_keys(layer: int) -> Tensor:
    raise AssertionError("these policies look at no keys")


def choose(eviction_state: EvictionState) -> None:
    if not eviction_state.has_victims:
        eviction_state.choose(no_keys)


def weights_of_and_add(head: Simulated, weights_of: object) -> dict[int, float]:
    weights = weights_of(head)  # type: ignore[operator]
    head.add(weights)
    return weights


def check(eviction_state: EvictionState, heads: list[Simulated]) -> None:
    mass = eviction_state.mass.view(LAYERS * HEADS, -1)
    for i, head in enumerate(heads):
        if eviction_state.positions is None:
            held = {p: float(mass[i, p]) for p in range(eviction_state.length)}
        else:
            positions = eviction_state.positions.view(LAYERS * HEADS, -1)[i].tolist()
            held = {p: float(mass[i, s]) for s, p in enumerate(positions) if p >= 0}
            # Overwritten at the next token, so no longer among what the rule holds.
        assert set(held) == set(head.masses)
        for position, value in held.items():
            assert value == pytest.approx(head.masses[position], abs=1e-5)
        recent = range(
            max(0, eviction_state.length - eviction_state.retention.recent), eviction_state.length
        )
        assert set(recent) <= set(held)
        assert set(range(min(eviction_state.retention.sink, eviction_state.length))) <= set(held)


def step(eviction_state: EvictionState, heads: list[Simulated], weights_of: object) -> None:
    attention_record = AttentionRecord(depths=[0], votes=None)
    held = eviction_state.held
    if eviction_state.in_slots:
        choose(eviction_state)
    for layer in range(LAYERS):
        weight = torch.zeros(HEADS, 1, held + 1)
        seen = eviction_state.seen([0], None, layer) if eviction_state.in_slots else None
        for h in range(HEADS):
            head = heads[layer * HEADS + h]
            if seen is not None and eviction_state.positions is not None:
                visible = eviction_state.positions[layer, h, :held][seen[h, 0]].tolist()
                assert sorted(visible) == sorted(head.sees())[:-1]
            weights = weights_of(head)  # type: ignore[operator]
            for position, value in weights.items():
                if position == head.length:
                    at = held
                elif eviction_state.positions is None:
                    at = position
                else:
                    at = int((eviction_state.positions[layer, h] == position).nonzero()[0, 0])
                weight[h, 0, at] = value
            head.add(weights)
        attention_record.weights.append(weight)
    eviction_state.add_rows(attention_record, [0])


def step_at_once(eviction_state: EvictionState, heads: list[Simulated], weights_of: object) -> None:
    """A row without draft tokens takes its slots before it attends."""
    choose(eviction_state)
    eviction_state.begin_row()
    attend(eviction_state, heads, weights_of)


def step_by_kernel(
    eviction_state: EvictionState, heads: list[Simulated], weights_of: object
) -> None:
    """The same, and the kernel says where they are."""
    assert eviction_state.positions is not None
    before, slots = eviction_state.positions.clone(), eviction_state.retention.slots
    pages = torch.randperm(50, dtype=torch.int32)[None, : -(-slots // PAGE)]
    taken = eviction_state.begin_row_by(evict, pages.contiguous(), PAGE)
    changed = (eviction_state.positions != before).nonzero()
    assert changed.shape[0] == LAYERS * HEADS
    for layer, head, slot in changed.tolist():
        assert int(taken[layer, head, 0]) == int(pages[0, slot // PAGE]) * PAGE + slot % PAGE
    attend(eviction_state, heads, weights_of)


def attend(eviction_state: EvictionState, heads: list[Simulated], weights_of: object) -> None:
    assert eviction_state.positions is not None
    attention_record = AttentionRecord(depths=[0], votes=None)
    for layer in range(LAYERS):
        weight = torch.zeros(HEADS, eviction_state.held)
        for h in range(HEADS):
            head = heads[layer * HEADS + h]
            held = eviction_state.positions[layer, h, : eviction_state.held].tolist()
            assert sorted(held) == sorted(head.sees())
            weights = weights_of(head)  # type: ignore[operator]
            for position, value in weights.items():
                weight[h, held.index(position)] = value
            head.add(weights)
        attention_record.weights.append(weight)
    eviction_state.end_row(attention_record)


def test_a_mass_is_not_frozen_by_its_size() -> None:
    eviction_state = EvictionState(
        h2o(), Retention(heavy=4, recent=4), kv_heads=1, windows=[None], device=CPU
    )
    attention_record = AttentionRecord(depths=[0], votes=torch.ones(1))
    attention_record.weights.append(torch.full((1, 1), 20.0))
    eviction_state.add_prompt(attention_record, 1)
    for _ in range(1000):
        attention_record = AttentionRecord(depths=[0], votes=None)
        weight = torch.zeros(1, 1, eviction_state.length + 1)
        weight[..., 0] = 0.001
        attention_record.weights.append(weight)
        eviction_state.retention = Retention(heavy=5000, recent=4)
        eviction_state.add_rows(attention_record, [0])
    assert float(eviction_state.mass[0, 0, 0]) == pytest.approx(21.0, abs=0.01)
