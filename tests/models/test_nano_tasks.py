"""What holds for every exact task: copying, extraction, translation and rewriting."""

import re
from collections.abc import Callable
from random import Random

import pytest

from penstock.models.nano.abilities import copying, extraction, rewriting, translation
from penstock.models.nano.abilities.example import Example, Split

_LONGEST_WORDS_AND_SIGNS = 220
_SEEDS = range(200)
_SPLITS: tuple[Split, ...] = ("train", "held_out")
_Generator = Callable[[Random, Split], Example]

generators = pytest.mark.parametrize(
    "example",
    [
        pytest.param(copying.example, id="copying"),
        pytest.param(extraction.example, id="extraction"),
        pytest.param(translation.example, id="translation"),
        pytest.param(rewriting.example, id="rewriting"),
    ],
)


@generators
@pytest.mark.parametrize("split", _SPLITS)
def test_only_its_own_answer_is_right(example: _Generator, split: Split) -> None:
    for seed in _SEEDS:
        shown = example(Random(seed), split)
        assert [turn.role for turn in shown.turns] == ["user", "assistant"]
        assert shown.grade(shown.answer) == {"exact": 1.0}
        assert shown.grade(f" {shown.answer}\n") == {"exact": 1.0}
        for wrong in ("", shown.answer[:-1], shown.answer + " x", shown.turns[0].text):
            assert shown.grade(wrong) == {"exact": 0.0}


@generators
@pytest.mark.parametrize("split", _SPLITS)
def test_the_same_seed_gives_the_same_example(example: _Generator, split: Split) -> None:
    first, again = ([example(Random(s), split).turns for s in _SEEDS] for _ in range(2))
    assert first == again
    assert len(set(first)) > 0.95 * len(first)


@generators
@pytest.mark.parametrize("split", _SPLITS)
def test_examples_are_short(example: _Generator, split: Split) -> None:
    for seed in range(1000):
        text = " ".join(turn.text for turn in example(Random(seed), split).turns)
        assert len(re.findall(r"\w+|[^\w\s]", text)) <= _LONGEST_WORDS_AND_SIGNS
        assert text.isascii()
        assert "{" not in example(Random(seed), split).turns[0].text


@generators
def test_one_question_has_one_answer(example: _Generator) -> None:
    random = Random(0)
    answers: dict[str, str] = {}
    for _ in range(3000):
        shown = example(random, "train")
        assert answers.setdefault(shown.turns[0].text, shown.answer) == shown.answer
