import itertools
from random import Random

import pytest

from penstock.models.nano.abilities import recall
from penstock.models.nano.abilities.example import Split


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_right_answer_stands_in_the_text_once(split: Split) -> None:
    rng = Random(0)
    for _ in range(300):
        example = recall.example(rng, split, questions=3)
        text = "".join(turn.text for turn in example.turns if turn.role != "assistant")
        assert text.count(example.answer) == 1
        assert example.grade(example.answer) == {"right": 1.0}


def test_no_other_sentence_answers_the_question() -> None:
    """What a fact is about occurs in no other fact of the text."""
    rng = Random(1)
    for _ in range(200):
        example = recall.example(rng, "train")
        text, _, _ = example.turns[-2].text.partition("\n\n")
        begin = example.answer.rsplit(" ", 1)[0]
        if example.turns[0].role == "user" and " lies " not in example.answer:
            assert text.count(f"{begin} ") == 1, (begin, text)


def test_a_wrong_value_is_wrong() -> None:
    rng = Random(2)
    examples = [recall.example(rng, "train") for _ in range(200)]
    for one, other in itertools.pairwise(examples):
        if one.answer.split()[-1] != other.answer.split()[-1]:
            assert one.grade(other.answer)["right"] == 0.0 or one.answer in other.answer
        assert one.grade("")["right"] == 0.0
        assert one.grade(one.turns[0].text * 3)["right"] == 0.0


@pytest.mark.parametrize("length_words", [50, 400, recall.LONGEST_WORDS])
def test_texts_have_about_the_length_asked_for(length_words: int) -> None:
    rng = Random(3)
    for _ in range(20):
        example = recall.example(rng, "train", length_words=length_words)
        words = len(example.turns[0].text.split())
        assert length_words <= words < length_words + 60


def test_depths_cover_the_text() -> None:
    rng = Random(4)
    tags = [recall.example(rng, "train", length_words=300).tags[0] for _ in range(400)]
    for tag in ("depth 0-25%", "depth 25-50%", "depth 50-75%", "depth 75-100%"):
        assert 0.15 < tags.count(tag) / len(tags) < 0.35


def test_the_same_seed_gives_the_same_text() -> None:
    assert recall.example(Random(5), "train").turns == recall.example(Random(5), "train").turns
