"""Eviction against a simulation in plain Python, straight from the rule."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from penstock.kernels.evict.reference import evict
from penstock.kvcache.base import Retention
from penstock.kvcache.keeping import Attended, Keeping

LAYERS, HEADS = 2, 3
CPU = torch.device("cpu")
Step = Callable[[Keeping, list["Simulated"], object], None]


@dataclass
class Simulated:
    """One head: positions held, and their masses; victims go when the interval is full."""

    retention: Retention
    masses: dict[int, float] = field(default_factory=dict)
    doomed: list[int] = field(default_factory=list)
    length: int = 0
    evicts: bool = False

    def sees(self) -> list[int]:
        """Positions that the next token sees, itself included."""
        gone = self.doomed[:1] if self.evicts and self.empty == 0 else []
        return [p for p in self.masses if p not in gone] + [self.length]

    @property
    def empty(self) -> int:
        return self.retention.slots - len(self.masses) if self.evicts else 1

    def add(self, weights: dict[int, float]) -> None:
        """The next token gave that much attention to each position that it sees."""
        if self.evicts and self.empty == 0:
            del self.masses[self.doomed.pop(0)]
        self.masses[self.length] = 0.0
        self.length += 1
        if self.retention.score == "decay":
            for position in self.masses:
                self.masses[position] *= 0.5 ** (1 / self.retention.half_life)
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
        if self.retention.score is None:
            return float(position)
        if self.retention.score == "mean":
            return self.masses[position] / (self.length - position)
        return self.masses[position]


CASES = {
    "paper": Retention(heavy=5, recent=4),
    "sinks": Retention(heavy=6, recent=3, sink=2),
    "interval-4": Retention(heavy=5, recent=4, interval=4),
    "interval-16": Retention(heavy=4, recent=6, sink=1, interval=16),
    "mean": Retention(heavy=5, recent=4, interval=3, score="mean"),
    "decay": Retention(heavy=5, recent=4, interval=2, score="decay", half_life=6),
    "window": Retention(heavy=2, recent=6, sink=2, score=None, interval=2),
    "all-recent": Retention(heavy=0, recent=7),
}
BY_KERNEL = {
    **{name: CASES[name] for name in ("paper", "sinks", "all-recent")},
    "window-1": Retention(heavy=2, recent=6, sink=2, score=None),
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
    assert Keeping(BY_KERNEL[name], LAYERS, HEADS, CPU).one_at_a_time
    run(name, BY_KERNEL[name], prompt, step_by_kernel)


def test_what_the_kernel_does_not_know() -> None:
    """More victims at once, means, decay, windows of the model; by age, windows do not matter."""
    names = ("interval-4", "mean", "decay", "window")
    assert not any(Keeping(CASES[name], LAYERS, HEADS, CPU).one_at_a_time for name in names)
    others = Retention(heavy=4, recent=4, score="mean"), Retention(heavy=4, recent=4, score="decay")
    assert not any(Keeping(other, LAYERS, HEADS, CPU).one_at_a_time for other in others)
    for name, expected in (("paper", False), ("window-1", True)):
        keeping = Keeping(BY_KERNEL[name], LAYERS, HEADS, CPU)
        keeping.note_window(0, None)
        assert keeping.one_at_a_time
        keeping.note_window(1, 100)
        assert keeping.one_at_a_time == expected
        assert keeping.fork().one_at_a_time == expected


def run(name: str, retention: Retention, prompt: int, stepped: Step) -> None:
    """A prompt and 60 tokens; the first ones, and all that precede the move, when verified."""
    chooser = random.Random(f"{name} {prompt}")
    keeping = Keeping(retention, LAYERS, HEADS, CPU)
    heads = [Simulated(retention) for _ in range(LAYERS * HEADS)]

    def weights_of(head: Simulated) -> dict[int, float]:
        # Multiples of 1/64 add up exactly; some are equal, so that ties occur.
        # Where nothing is scored the engine gives no weights either, but to guesses.
        counts = retention.score is not None or stepped is not step_by_kernel
        return {p: chooser.randrange(8) / 64 if counts else 0.0 for p in head.sees()}

    given = [[weights_of_and_add(head, weights_of) for _ in range(prompt)] for head in heads]
    matrix = torch.zeros(LAYERS * HEADS, prompt, prompt)
    for i, rows in enumerate(given):
        for query, weights in enumerate(rows):
            for position, weight in weights.items():
                matrix[i, query, position] = weight
    matrix = matrix.view(LAYERS, HEADS, prompt, prompt)
    attended = Attended(depths=list(range(prompt)), votes=keeping.votes(prompt, prompt))
    for layer in range(LAYERS):
        assert attended.votes is not None
        attended.weights.append(torch.einsum("hqk,q->hk", matrix[layer], attended.votes))
    keeping.add_prompt(attended, prompt)
    for _ in range(60):
        for head in heads:
            head.first_eviction()
        if keeping.must_move:
            keeping.move_to_slots()
        check(keeping, heads)
        (stepped if keeping.in_slots else step)(keeping, heads, weights_of)
    assert keeping.in_slots


def weights_of_and_add(head: Simulated, weights_of: object) -> dict[int, float]:
    weights = weights_of(head)  # type: ignore[operator]
    head.add(weights)
    return weights


def check(keeping: Keeping, heads: list[Simulated]) -> None:
    mass = keeping.mass.view(LAYERS * HEADS, -1)
    for i, head in enumerate(heads):
        if keeping.positions is None:
            held = {p: float(mass[i, p]) for p in range(keeping.length)}
        else:
            positions = keeping.positions.view(LAYERS * HEADS, -1)[i].tolist()
            held = {p: float(mass[i, s]) for s, p in enumerate(positions) if p >= 0}
            # Overwritten at the next token, so no longer among what the rule holds.
        assert set(held) == set(head.masses)
        for position, value in held.items():
            assert value == pytest.approx(head.masses[position], abs=1e-5)
        recent = range(max(0, keeping.length - keeping.retention.recent), keeping.length)
        assert set(recent) <= set(held)
        assert set(range(min(keeping.retention.sink, keeping.length))) <= set(held)


def step(keeping: Keeping, heads: list[Simulated], weights_of: object) -> None:
    attended = Attended(depths=[0], votes=None)
    held = keeping.held
    for layer in range(LAYERS):
        weight = torch.zeros(HEADS, 1, held + 1)
        seen = keeping.seen([0], None, layer) if keeping.in_slots else None
        for h in range(HEADS):
            head = heads[layer * HEADS + h]
            if seen is not None and keeping.positions is not None:
                visible = keeping.positions[layer, h, :held][seen[h, 0]].tolist()
                assert sorted(visible) == sorted(head.sees())[:-1]
            weights = weights_of(head)  # type: ignore[operator]
            for position, value in weights.items():
                if position == head.length:
                    at = held
                elif keeping.positions is None:
                    at = position
                else:
                    at = int((keeping.positions[layer, h] == position).nonzero()[0, 0])
                weight[h, 0, at] = value
            head.add(weights)
        attended.weights.append(weight)
    keeping.add_rows(attended, [0])


def step_at_once(keeping: Keeping, heads: list[Simulated], weights_of: object) -> None:
    """A row without guesses takes its slots before it attends."""
    keeping.begin_row()
    attend(keeping, heads, weights_of)


def step_by_kernel(keeping: Keeping, heads: list[Simulated], weights_of: object) -> None:
    """The same, and the kernel says where they are."""
    assert keeping.positions is not None
    before, slots = keeping.positions.clone(), keeping.retention.slots
    pages = torch.randperm(50, dtype=torch.int32)[None, : -(-slots // PAGE)]
    taken = keeping.begin_row_by(evict, pages.contiguous(), PAGE)
    changed = (keeping.positions != before).nonzero()
    assert changed.shape[0] == LAYERS * HEADS
    for layer, head, slot in changed.tolist():
        assert int(taken[layer, head, 0]) == int(pages[0, slot // PAGE]) * PAGE + slot % PAGE
    attend(keeping, heads, weights_of)


def attend(keeping: Keeping, heads: list[Simulated], weights_of: object) -> None:
    assert keeping.positions is not None
    attended = Attended(depths=[0], votes=None)
    for layer in range(LAYERS):
        weight = torch.zeros(HEADS, keeping.held)
        for h in range(HEADS):
            head = heads[layer * HEADS + h]
            held = keeping.positions[layer, h, : keeping.held].tolist()
            assert sorted(held) == sorted(head.sees())
            weights = weights_of(head)  # type: ignore[operator]
            for position, value in weights.items():
                weight[h, held.index(position)] = value
            head.add(weights)
        attended.weights.append(weight)
    keeping.end_row(attended)


def test_a_mass_is_not_frozen_by_its_size() -> None:
    keeping = Keeping(Retention(heavy=4, recent=4), 1, 1, CPU)
    attended = Attended(depths=[0], votes=torch.ones(1))
    attended.weights.append(torch.full((1, 1), 20.0))
    keeping.add_prompt(attended, 1)
    for _ in range(1000):
        attended = Attended(depths=[0], votes=None)
        weight = torch.zeros(1, 1, keeping.length + 1)
        weight[..., 0] = 0.001
        attended.weights.append(weight)
        keeping.retention = Retention(heavy=5000, recent=4)
        keeping.add_rows(attended, [0])
    assert float(keeping.mass[0, 0, 0]) == pytest.approx(21.0, abs=0.01)
