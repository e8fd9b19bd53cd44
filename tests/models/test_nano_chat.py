from random import Random

import pytest

from penstock.models.nano.abilities import chat
from penstock.models.nano.abilities.example import Split


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_own_answer_is_right(split: Split) -> None:
    rng = Random(0)
    for _ in range(500):
        example = chat.example(rng, split)
        assert example.grade(example.answer) == {"right": 1.0}, example.turns


def test_every_exchange_expects_its_own_answer_only() -> None:
    """Most answers fit one thing said only; greetings, offers and thanks are shared by few."""
    rng = Random(1)
    examples = [chat.example(rng, "train") for _ in range(400)]
    plain = [e for e in examples if not e.tags[0].startswith("with a")]
    fits = [one.grade(other.answer)["right"] for one in plain for other in plain]
    assert sum(fits) / len(fits) < 0.3


def test_a_system_prompt_changes_the_answer() -> None:
    rng = Random(2)
    named = ended = 0
    for _ in range(500):
        example = chat.example(rng, "train")
        system = example.turns[0].text if example.turns[0].role == "system" else ""
        if example.answer.startswith("My name is ") and "Nano" not in example.answer:
            name = example.answer.removeprefix("My name is ").partition(".")[0]
            assert name in system
            assert example.grade(example.answer.replace(name, "Nano")) == {"right": 0.0}
            named += 1
        if "End every answer with: " in system:
            closing = system.partition("End every answer with: ")[2]
            assert example.answer.endswith(closing)
            assert example.grade(example.answer.removesuffix(closing)) == {"right": 0.0}
            ended += 1
    assert named > 5
    assert ended > 50
