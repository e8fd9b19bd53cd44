import re
from random import Random

import pytest

from penstock.models.nano.abilities.copying import example
from penstock.models.nano.abilities.example import Split, is_held_out
from penstock.models.nano.abilities.materials import combination

_CUTS = {"commas": ", ", "lines": "\n", "spaces": " "}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_answer_stands_in_the_question(split: Split) -> None:
    random = Random(0)
    for _ in range(500):
        shown = example(random, split)
        request, _, rest = shown.turns[0].text.partition(":")
        assert "\n" not in request
        assert rest.strip() == shown.answer


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_lists_have_3_to_16_items_and_begin_with_a_pair_of_their_split(split: Split) -> None:
    random = Random(1)
    lengths: set[int] = set()
    for _ in range(2000):
        shown = example(random, split)
        (shape,) = shown.tags
        if shape == "sentences":
            continue
        items = [item.removeprefix("- ") for item in shown.answer.split(_CUTS[shape])]
        lengths.add(len(items))
        assert is_held_out(combination("copying", *items[:2])) == (split == "held_out")
    assert lengths == set(range(3, 17))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_sentences_are_about_a_pair_of_their_split(split: Split) -> None:
    random = Random(2)
    for _ in range(1000):
        shown = example(random, split)
        if shown.tags == ("sentences",):
            first = re.split(r"[.?!] ", shown.answer)[0]
            # In two wordings the adjective and the noun follow another word than a first "The".
            pair = re.findall(r"\b[Tt]he ([a-z]+) ((?:(?:toy|teddy|flower) )?[a-z]+)", first)[0]
            assert is_held_out(combination("copying", *pair)) == (split == "held_out")
