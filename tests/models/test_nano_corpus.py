import re
from itertools import islice

import pytest

from penstock.models.nano.abilities.example import Split
from penstock.models.nano.training.corpus import MIXES, documents

_MARKERS = re.compile(r"<\|im_(start|end)\|>")


def test_the_same_seed_gives_the_same_documents() -> None:
    assert list(islice(documents(3), 50)) == list(islice(documents(3), 50))


def test_another_seed_gives_other_documents() -> None:
    assert not {*islice(documents(3), 200)} & {*islice(documents(4), 200)}


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
@pytest.mark.parametrize("mix", MIXES)
def test_conversations_end_with_an_answer(split: Split, mix: str, long: bool) -> None:
    for text in islice(documents(1, split, mix=mix, long=long), 300):
        turns = text.split("<|im_start|>")
        if len(turns) == 1:
            assert not _MARKERS.search(text)
            continue
        assert turns[0] == ""
        assert turns[-1].startswith("assistant\n")
        assert all(turn.rstrip("\n").endswith("<|im_end|>") for turn in turns[1:])


def test_the_splits_share_no_document() -> None:
    # Small talk without a system prompt is the same in both: nothing in it can be held out.
    train = {text for text in islice(documents(0), 3000) if len(text) > 400}
    held_out = {text for text in islice(documents(0, "held_out"), 3000) if len(text) > 400}
    assert len(train) > 500
    assert not train & held_out
