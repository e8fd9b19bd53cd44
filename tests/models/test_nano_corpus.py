import re
from itertools import islice
from random import Random

import pytest

from penstock.models.nano import words
from penstock.models.nano.corpus import Split, ask_for, documents, is_held_out
from penstock.models.nano.story import MORALS, tell

_LEFTOVERS = re.compile(r"[\[\]{}|^~]| {2}|,\.|\.\.|,,|[!?]\"\.|\. [a-z]|\ba [aeio]")
_MARKERS = re.compile(r"<\|im_(start|end)\|>")


def test_the_same_seed_gives_the_same_documents() -> None:
    assert list(islice(documents(3), 50)) == list(islice(documents(3), 50))


def test_another_seed_gives_other_documents() -> None:
    first = {d.text for d in islice(documents(3), 200) if d.story}
    second = {d.text for d in islice(documents(4), 200) if d.story}
    assert not first & second


def test_stories_are_distinct() -> None:
    texts = [d.text for d in islice(documents(0), 2000) if d.story]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_split_tells_only_of_its_own_combinations(split: Split) -> None:
    stories = [d.story for d in islice(documents(1, split), 300) if d.story]
    assert {is_held_out(story.combination) for story in stories} == {split == "held_out"}


def test_about_one_combination_in_twenty_is_held_out() -> None:
    pairs = {f"{k}/{t}" for k in words.KINDS for plot, _ in MORALS.values() for t in plot.topics}
    share = sum(map(is_held_out, pairs)) / len(pairs)
    assert 0.04 < share < 0.06


def test_no_template_is_left_in_the_text() -> None:
    for document in islice(documents(2), 2000):
        text = _MARKERS.sub("", document.text)
        assert not _LEFTOVERS.search(text), text


def test_half_of_the_documents_are_plain() -> None:
    found = list(islice(documents(0), 2000))
    plain = sum("<|im_start|>" not in d.text for d in found) / len(found)
    assert 0.45 < plain < 0.55


def test_pronouns_stay_the_same() -> None:
    # Stories whose hero and helper are both "he" have nobody to be called "she".
    for seed in range(2000):
        story = tell(Random(seed))
        if story.kind in words.HE_KINDS and story.helper in words.HE_KINDS:
            outside = re.sub(r"[Ss]he |[Hh]er ", "", story.text)
            assert outside == story.text


def test_a_request_is_fulfilled_by_its_story() -> None:
    rng = Random(0)
    for seed in range(500):
        story = tell(Random(seed))
        request = ask_for(story, rng).lower()
        for name in (story.kind, (story.name or story.kind).lower()):
            if re.search(rf"\b{name}\b", request):
                assert name in story.text.lower()
