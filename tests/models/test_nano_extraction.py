import json
import re
from collections.abc import Mapping
from random import Random
from typing import cast

import pytest

from penstock.models.nano.abilities.example import Example, Split, is_held_out
from penstock.models.nano.abilities.extraction import example
from penstock.models.nano.abilities.materials import combination


def _form(shown: Example) -> dict[str, str]:
    lines = re.findall(r"^(\w+): (.+)$", shown.turns[0].text, re.MULTILINE)
    return {label.lower(): value for label, value in lines}


def _answer(shown: Example) -> Mapping[str, object]:
    return cast("Mapping[str, object]", json.loads(shown.answer))


def _examples(split: Split, tag: str) -> list[Example]:
    random = Random(0)
    return [shown for _ in range(600) if (shown := example(random, split)).tags == (tag,)]


def test_the_answer_is_what_the_form_says_in_the_order_asked() -> None:
    for shown in _examples("train", "form"):
        answer, form = _answer(shown), _form(shown)
        assert 3 <= len(form) <= 8
        request = re.search(r"^(?:Extract|Give me|Return JSON with) .*", shown.turns[0].text, re.M)
        assert request
        assert [word for word in re.findall(r"[a-z]+", request[0]) if word in form] == list(answer)
        for field, value in answer.items():
            assert isinstance(value, int) == (field in ("age", "points"))
            assert str(value) == form[field]
        assert json.dumps(answer) == shown.answer


def test_the_answer_stands_in_the_sentences() -> None:
    for shown in _examples("train", "prose"):
        assert _answer(shown)
        for value in _answer(shown).values():
            assert re.search(rf"\b{value}\b", shown.turns[0].text)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_forms_are_about_a_person_and_a_value_of_their_split(split: Split) -> None:
    sides: set[bool] = set()
    for shown in _examples(split, "form"):
        form = _form(shown)
        name = form.pop("name")
        value = form.get("city", next(iter(form.values())))
        sides.add(is_held_out(combination("extraction", name, value)))
    assert sides == {split == "held_out"}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_sentences_are_about_a_person_and_a_city_of_their_split(split: Split) -> None:
    sides: set[bool] = set()
    for shown in _examples(split, "prose"):
        if {"name", "city"} <= (answer := _answer(shown)).keys():
            pair = str(answer["name"]), str(answer["city"])
            sides.add(is_held_out(combination("extraction", *pair)))
    assert sides == {split == "held_out"}
