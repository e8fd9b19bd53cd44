"""`evict`, by torch and by Triton, against the rule applied to one slot after another."""

import importlib.util
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock.kernels.evict import reference

CONTEXTS, HEADS, PAGE = 3, 2, 4
Evict = Callable[..., None]


def implementation(name: str) -> Evict:
    if name == "torch":
        return reference.evict
    triton: Any = pytest.importorskip("penstock.kernels.evict.triton")
    return triton.evict


EACH = pytest.mark.parametrize("name", ["torch", "triton"])


def state(slots: int, seed: int) -> dict[str, Tensor]:
    """Contexts of other lengths; masses with ties; some slots still empty."""
    chooser = random.Random(seed)
    lengths = [slots + chooser.randrange(50) for _ in range(CONTEXTS)]
    positions = torch.stack(
        [
            torch.tensor([chooser.sample(range(length), slots) for _ in range(HEADS)])
            for length in lengths
        ]
    )
    positions[1, 0, slots // 2 :: 3] = -1
    mass = torch.tensor([chooser.randrange(4) / 2 for _ in range(positions.numel())])
    pages = -(-slots // PAGE)
    return {
        "mass_BKS": mass.view(positions.shape).masked_fill(positions < 0, 0.0),
        "positions_BKS": positions.to(torch.int32),
        "lengths_B": torch.tensor(lengths, dtype=torch.int32),
        "recent_B": torch.tensor([0, 2, slots // 3], dtype=torch.int32),
        "sink_B": torch.tensor([0, 1, 3], dtype=torch.int32),
        "tables_BW": torch.tensor(
            [chooser.sample(range(1000), pages) for _ in range(CONTEXTS)], dtype=torch.int32
        ),
        "slots_BK": torch.full((CONTEXTS, HEADS), -7),
    }


def by_the_rule(of: dict[str, Tensor], context: int, head: int) -> int:
    """The victim's slot."""
    length, recent = int(of["lengths_B"][context]), int(of["recent_B"][context])
    sink = int(of["sink_B"][context])
    ranks: list[tuple[float, int, int]] = []
    for slot, position in enumerate(of["positions_BKS"][context, head].tolist()):
        mass = float(of["mass_BKS"][context, head, slot])
        if position < 0:
            ranks.append((-1.0, position, slot))
        elif sink <= position < length - recent:
            ranks.append((mass, position, slot))
    return min(ranks)[2]


@EACH
@pytest.mark.parametrize("slots", [7, 64, 1500])
def test_the_victim_of_the_rule_gives_its_place(name: str, slots: int) -> None:
    before = state(slots, slots)
    after = {key: tensor.clone() for key, tensor in before.items()}
    implementation(name)(**after, page_size=PAGE)
    for context in range(CONTEXTS):
        for head in range(HEADS):
            victim = by_the_rule(before, context, head)
            page = int(before["tables_BW"][context, victim // PAGE])
            assert int(after["slots_BK"][context, head]) == page * PAGE + victim % PAGE
            before["positions_BKS"][context, head, victim] = before["lengths_B"][context]
            before["mass_BKS"][context, head, victim] = 0.0
    assert torch.equal(after["positions_BKS"], before["positions_BKS"])
    assert torch.equal(after["mass_BKS"], before["mass_BKS"])


@pytest.mark.gpu
@pytest.mark.parametrize("slots", [7, 64, 1500, 20000])
def test_the_same_on_a_gpu(slots: int) -> None:
    ours = {key: tensor.cuda() for key, tensor in state(slots, slots).items()}
    theirs = state(slots, slots)
    implementation("triton")(**ours, page_size=PAGE)
    reference.evict(**theirs, page_size=PAGE)
    for key, tensor in ours.items():
        assert torch.equal(tensor.cpu(), theirs[key])


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_many_tokens_in_a_row_evict_the_same() -> None:
    """Positions stay distinct; the newest and the sinks are always there."""
    ours, theirs = state(24, 5), state(24, 5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        implementation("triton")(**ours, page_size=PAGE)
        reference.evict(**theirs, page_size=PAGE)
        given = torch.rand(CONTEXTS, HEADS, 24, generator=generator)
        for of in (ours, theirs):
            of["lengths_B"] += 1
            of["mass_BKS"] += given
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key])
    for context in range(CONTEXTS):
        length, recent = int(ours["lengths_B"][context]), int(ours["recent_B"][context])
        for head in range(HEADS):
            held = ours["positions_BKS"][context, head].tolist()
            assert len(set(held)) == len(held)
            assert set(held) >= set(range(length - recent, length))
