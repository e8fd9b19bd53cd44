"""Talu is read back here by a parser of its own, which shares only the lexicon with the module."""

from random import Random

import pytest

from penstock.models.nano.abilities.example import Example, Split, is_held_out
from penstock.models.nano.abilities.materials import NAMES, combination
from penstock.models.nano.abilities.translation import LEXICON, example

_ENGLISH = {talu: english for english, talu in LEXICON.items()}
_PAST = {
    "see": "saw", "find": "found", "like": "liked", "take": "took", "want": "wanted",
    "carry": "carried", "hide": "hid", "hold": "held", "bring": "brought", "draw": "drew",
    "lose": "lost", "buy": "bought", "paint": "painted", "push": "pushed", "follow": "followed",
    "love": "loved",
}  # fmt: skip
_ODD = {
    "mouse": "mice", "wolf": "wolves", "fox": "foxes", "box": "boxes", "witch": "witches",
    "carry": "carries", "push": "pushes",
}  # fmt: skip
_NUMBERS = ("one", "two", "three", "four", "five")


def _noun_phrase(words: list[str]) -> tuple[str, str, bool]:
    """Take a phrase off the front; return its English, its noun and whether it is plural."""
    head, *marks = words.pop(0).split("-")
    if head in NAMES or _ENGLISH[head] in ("he", "she", "we", "they"):
        head = _ENGLISH.get(head, head)
        return head, head, head in ("we", "they")
    noun, plural = _ENGLISH[head], "ni" in marks
    adjectives: list[str] = []
    while words and words[0].endswith("in"):
        adjectives.append(_ENGLISH[words.pop(0)])
    number = _ENGLISH[words.pop(0)] if words and _ENGLISH.get(words[0]) in _NUMBERS else ""
    english = [*adjectives, _ODD.get(noun, f"{noun}s") if plural else noun]
    article = "an" if english[0][0] in "aeiou" else "a"
    first = number or ("the" if "ra" in marks else "" if plural else article)
    return " ".join([first, *english]).strip(), noun, plural


def _read(talu: str) -> tuple[str, tuple[str, str, str]]:
    """Return the English of a sentence and its subject, verb and object."""
    words = talu.split()
    is_past = words[-1] == "dol"
    if is_past:
        words.pop()
    verb = _ENGLISH[words.pop()]
    is_negative = words[-1] == "mek"
    if is_negative:
        words.pop()
    subject, subject_noun, plural = _noun_phrase(words)
    object_, object_noun, _ = _noun_phrase(words)
    place = ""
    if words and _ENGLISH.get(words[0]) in ("in", "near", "behind"):
        place = f" {_ENGLISH[words.pop(0)]} {object_}"
        object_, object_noun, _ = _noun_phrase(words)
    assert not words
    if is_negative:
        said = f"{'did' if is_past else 'do' if plural else 'does'} not {verb}"
    else:
        said = _PAST[verb] if is_past else verb if plural else _ODD.get(verb, f"{verb}s")
    english = f"{subject} {said} {object_}{place}."
    return english[0].upper() + english[1:], (subject_noun, verb, object_noun)


def _talu_and_english(shown: Example) -> tuple[list[str], str]:
    request, _, asked = shown.turns[0].text.partition(": ")
    is_to_english = request == "Translate to English"
    talu, english = (asked, shown.answer) if is_to_english else (shown.answer, asked)
    return [sentence.removesuffix(".") for sentence in talu.split(". ")], english


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_talu_reads_back_as_the_english_it_came_from(split: Split) -> None:
    random = Random(0)
    for _ in range(2000):
        talu, english = _talu_and_english(example(random, split))
        read = [_read(sentence) for sentence in talu]
        assert " ".join(sentence for sentence, _ in read) == english
        for sentence, triple in read:
            assert 5 <= len(sentence.split()) <= 14
            assert is_held_out(combination("translation", *triple)) == (split == "held_out")


def test_no_two_words_are_one_in_talu() -> None:
    assert len(_ENGLISH) == len(LEXICON) > 110
    assert not _ENGLISH.keys() & {*NAMES, "dol"}
    assert not _ENGLISH.keys() & LEXICON.keys()


def test_three_in_ten_are_into_english() -> None:
    tags = [example(Random(seed), "train").tags[0] for seed in range(2000)]
    # Six standard deviations of 2,000 draws.
    assert abs(tags.count("to English") / len(tags) - 0.3) < 0.06
