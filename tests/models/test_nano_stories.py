import re
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from random import Random

import pytest

from penstock.models.nano.abilities import storytelling
from penstock.models.nano.abilities.example import Example, Split, is_held_out
from penstock.models.nano.stories import words
from penstock.models.nano.stories.grammar import enumerated
from penstock.models.nano.stories.story import MORALS, tell
from penstock.models.nano.stories.wishes import BY_WORD, WISHES, mentioned, names

_LEFTOVERS = re.compile(r"[\[\]{}|^~]| {2}|,\.|\.\.|,,|[!?]\"\.|\. [a-z]|\ba [aeio]")


def _requests(split: Split = "train") -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield request, story and the story's own grade."""
    rng = Random(f"test/{split}")
    while True:
        example = storytelling.example(rng, split)
        yield example.turns[-2].text, example.answer, dict(example.grade(example.answer))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_story_fulfils_its_request(split: Split) -> None:
    for request, story, grade in islice(_requests(split), 500):
        assert grade, request
        assert set(grade.values()) == {1.0}, (request, story, grade)


def test_requests_want_one_to_four_things() -> None:
    rng = Random(0)
    tags = {storytelling.example(rng, "train").tags for _ in range(500)}
    assert tags == {(f"{count} wanted",) for count in (1, 2, 3, 4)}


def test_another_story_does_not_fulfil_the_request() -> None:
    rng = Random(1)
    examples = [storytelling.example(rng, "train") for _ in range(200)]
    others = [a.grade(b.answer) for a, b in pairwise(examples)]
    wanted = [grade["wanted"] for grade in others]
    assert sum(wanted) / len(wanted) < 0.35
    assert min(grade.get("unwanted left out", 1.0) for grade in others) == 0.0


def test_unwanted_things_are_asked_for_now_and_then() -> None:
    found = [request for request, _, _ in islice(_requests(), 300)]
    assert 0.15 < sum("without" in request for request in found) / len(found) < 0.45


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_split_tells_only_of_its_own_combinations(split: Split) -> None:
    rng = Random(2)
    for _ in range(200):
        story, extras = storytelling.draw(rng, split)
        pairs = {story.combination}
        if len(extras) > 1:
            pairs.add("/".join(sorted(wish.word for wish in extras[:2])))
        assert any(map(is_held_out, pairs)) == (split == "held_out")


def test_about_one_combination_in_twenty_is_held_out() -> None:
    pairs = {f"{k}/{t}" for k in words.KINDS for plot, _ in MORALS.values() for t in plot.topics}
    assert 0.04 < sum(map(is_held_out, pairs)) / len(pairs) < 0.06


def test_no_template_is_left_in_the_text() -> None:
    for request, story, _ in islice(_requests(), 2000):
        assert not _LEFTOVERS.search(story), story
        assert not re.search(r"[\[\]{}|^~]| {2}", request), request


def test_stories_are_distinct() -> None:
    texts = [story for _, story, _ in islice(_requests(), 2000)]
    assert len(set(texts)) == len(texts)


def test_pronouns_stay_the_same() -> None:
    # Stories whose hero and helper are both "he" have nobody to be called "she".
    for seed in range(2000):
        story = tell(Random(seed))
        if story.kind in words.HE_KINDS and story.helper in words.HE_KINDS:
            assert not re.search(r"[Ss]he |[Hh]er ", story.text)


def test_a_story_mentions_every_extra() -> None:
    rng = Random(3)
    for _ in range(300):
        extras = rng.sample(WISHES, 3)
        text = tell(rng, extras).text
        assert all(names(text, wish.word) for wish in extras), (extras, text)


def test_told_promptly_nothing_of_the_plot_comes_between_extras() -> None:
    extras = (BY_WORD["zebra"], BY_WORD["clock"])

    def sentences_between(*, promptly: bool) -> list[int]:
        found: list[int] = []
        for seed in range(80):
            text = tell(Random(seed), extras, promptly=promptly).text
            if all(text.count(wish.word) == 1 for wish in extras):
                start, end = sorted(text.index(wish.word) for wish in extras)
                found.append(text[start:end].count(". "))
        return found

    assert max(sentences_between(promptly=True)) == 1
    assert max(sentences_between(promptly=False)) > 3


@pytest.mark.parametrize(
    ("text", "word", "found"),
    [
        ("It was a rainy day.", "rain", True),
        ("It had been raining.", "rain", True),
        ("The train left.", "rain", False),
        ("Two keys lay there.", "key", True),
        ("The monkey left.", "key", False),
        ("She had a toy boat.", "toy boat", True),
    ],
)
def test_names(text: str, word: str, found: bool) -> None:
    assert names(text, word) is found


def test_mentioned_knows_plurals_and_pairs_of_words() -> None:
    found = mentioned("The dragons ate warm bread on a rainy day.")
    assert set(found) == {BY_WORD[word] for word in ("dragon", "warm bread", "rain")}


def test_enumerated() -> None:
    assert enumerated(["a"]) == "a"
    assert enumerated(["a", "b", "c"]) == "a, b and c"


@pytest.mark.parametrize(
    ("make", "least", "most"),
    [(storytelling.ordered_example, 0.9, 1.0), (storytelling.prompt_example, 0.3, 0.7)],
)
def test_ordered_stories_come_to_things_in_the_order_of_the_request(
    make: Callable[[Random, Split], Example], least: float, most: float
) -> None:
    rng, in_order = Random(5), list[bool]()
    for _ in range(400):
        example = make(rng, "train")
        request, story = example.turns[-2].text.lower(), example.answer.lower()
        pair = [
            w.word for w in mentioned(story) if story.count(w.word) == request.count(w.word) == 1
        ]
        if len(pair) == 2:
            one, two = pair
            in_order.append(
                (request.index(one) < request.index(two)) == (story.index(one) < story.index(two))
            )
    assert len(in_order) > 40
    assert least <= sum(in_order) / len(in_order) <= most
