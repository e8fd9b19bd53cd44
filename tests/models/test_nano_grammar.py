from random import Random

import pytest

from penstock.models.nano.stories.grammar import expand


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        pytest.param("{he} ran. {he} fell.", "She ran. She fell.", id="sentence-starts"),
        pytest.param('"come!" {he} said.', '"Come!" she said.', id="after-a-quote-small"),
        pytest.param('"come!" ^{he} left.', '"Come!" She left.', id="caret"),
        pytest.param("it was a {thing}.", "It was an egg.", id="an"),
        pytest.param("it was a unicorn.", "It was a unicorn.", id="a-before-a-consonant-sound"),
        pytest.param("one[|]  two", "One two", id="spaces"),
        pytest.param("[{outer}|{outer}]", "Deep", id="slot-that-holds-a-template"),
    ],
)
def test_expand(template: str, expected: str) -> None:
    slots = {"he": "she", "thing": "egg", "outer": "[deep|deep]"}
    assert expand(template, slots, Random(0)) == expected


def test_every_alternative_is_reached() -> None:
    # 200 draws miss one of three equally likely texts with odds below 1e-34.
    assert {expand("[a|b|[c]]", {}, Random(i)) for i in range(200)} == {"A", "B", "C"}


def test_unknown_slot() -> None:
    with pytest.raises(KeyError, match="nobody"):
        expand("{nobody}", {}, Random(0))
