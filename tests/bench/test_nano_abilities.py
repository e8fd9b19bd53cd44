"""The table of the embedded model's abilities, over answers written here."""

import pytest

from benchmarks.nano_abilities import ABILITIES, Answer, loops, table


def test_loops() -> None:
    assert loops("a b c d e f g h " * 3)
    assert not loops("a b c d e f g h " * 2)
    assert not loops("short")


@pytest.mark.parametrize("name", ABILITIES)
def test_right_answers_score_one_in_every_group(name: str) -> None:
    examples = ABILITIES[name](10)
    answers = [Answer(text=example.answer, ended=True, prompt_tokens=100) for example in examples]
    lines = table(name, examples, answers)
    assert {line["mean"] for line in lines} == {1.0}
    assert {line["answers"] for line in lines if line["group"] == "all"} >= {len(examples)}


@pytest.mark.parametrize("name", ABILITIES)
def test_silence_scores_nothing(name: str) -> None:
    examples = ABILITIES[name](10)
    answers = [Answer(text="", ended=False, prompt_tokens=100) for _ in examples]
    own = {"no loop", "unwanted left out"}  # which silence does not lack
    means = {line["mean"] for line in table(name, examples, answers) if line["score"] not in own}
    assert means == {0.0}


def test_recall_is_grouped_by_length() -> None:
    examples = ABILITIES["recall"](5)
    answers = [
        Answer(text="", ended=True, prompt_tokens=tokens) for tokens in (100, 499, 500, 1500, 1700)
    ]
    lines = table("recall", examples, answers)
    counts = {line["group"]: line["answers"] for line in lines if line["score"] == "right"}
    assert counts["0-500 tokens"] == 2
    assert counts["500-1000 tokens"] == 1
    assert counts["1500-2000 tokens"] == 2
    assert counts["up to 1500 tokens"] == 4
