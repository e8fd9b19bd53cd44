"""Copying: say a list or a sentence again, sign by sign.

Held out by the first two items of the list, or by the adjective and noun of a sentence.
"""

from collections.abc import Callable
from random import Random
from typing import Final

from ..stories.words import COLOURS, FOODS, KINDS, SPOTS, THING_ADJECTIVES, THINGS, TRAITS
from .example import Example, Split
from .materials import NAMES, PHRASES, WORDS, draw_for, exact, made_up, made_up_name

_Item = Callable[[Random], str]

_SHORTEST, _LONGEST = 3, 16
_SENTENCES: Final = (
    "The {adjective} {noun} is {spot}.",
    "The {adjective} {noun} of {name} costs {number} coins.",
    "{name} saw the {adjective} {noun} {spot}.",
    "Is the {adjective} {noun} in {city} or {spot}?",
    "The {adjective} {noun} needs {food}, {number} eggs and one {word}.",
    "{name} said that the {adjective} {noun} is {word}!",
)
_LIST_REQUESTS: Final = ("Repeat this list:", "Copy this list exactly:", "Say this list again:")
_WORD_REQUESTS: Final = ("Repeat these words:", "Copy these words exactly:", "Repeat after me:")
_SENTENCE_REQUESTS: Final = ("Repeat after me:", "Copy this text exactly:", "Say this again:")


def _number(rng: Random) -> str:
    return str(rng.randrange(10 ** rng.randint(1, 3)))


def _name(rng: Random) -> str:
    return rng.choice(NAMES)


def _word(rng: Random) -> str:
    return rng.choice(WORDS)


def _phrase(rng: Random) -> str:
    return rng.choice(PHRASES)


def _any_word(rng: Random) -> str:
    return rng.choice((_word, _word, _name, _number, made_up))(rng)


def _anything(rng: Random) -> str:
    return rng.choice((_phrase, _phrase, _name, _number, made_up))(rng)


# A list is of one kind, or of all: mixed ones come twice as often.
_WORD_KINDS: Final[tuple[_Item, ...]] = (_word, _name, _number, made_up, _any_word, _any_word)
_ITEM_KINDS: Final[tuple[_Item, ...]] = (_phrase, _name, _number, made_up, _anything, _anything)


def _items(rng: Random, split: Split, kinds: tuple[_Item, ...]) -> list[str]:
    item = rng.choice(kinds)
    first = draw_for(split, "copying", lambda: (item(rng), item(rng)))
    return [*first, *(item(rng) for _ in range(rng.randint(_SHORTEST, _LONGEST) - 2))]


def _sentence(rng: Random, split: Split) -> str:
    def opening() -> tuple[str, str]:
        if rng.random() < 0.3:
            return made_up(rng), made_up(rng)
        if rng.random() < 0.5:
            return rng.choice(TRAITS), rng.choice(KINDS)
        return rng.choice(COLOURS + THING_ADJECTIVES), rng.choice(THINGS)

    adjective, noun = draw_for(split, "copying", opening)
    return rng.choice(_SENTENCES).format(
        adjective=adjective,
        noun=noun,
        spot=rng.choice(SPOTS),
        name=_name(rng),
        city=made_up_name(rng),
        number=rng.randint(2, 999),
        food=rng.choice(FOODS),
        word=rng.choice((_word, made_up))(rng),
    )


def example(rng: Random, split: Split) -> Example:
    """Return a request to copy 3 to 16 items, or one to three sentences, as they stand."""
    shape = rng.choice(("commas", "lines", "spaces", "sentences"))
    match shape:
        case "commas":
            text = ", ".join(_items(rng, split, _ITEM_KINDS))
            question = f"{rng.choice(_LIST_REQUESTS)} {text}"
        case "lines":
            text = "\n".join(f"- {item}" for item in _items(rng, split, _ITEM_KINDS))
            question = f"{rng.choice(_LIST_REQUESTS)}\n{text}"
        case "spaces":
            text = " ".join(_items(rng, split, _WORD_KINDS))
            question = f"{rng.choice(_WORD_REQUESTS)} {text}"
        case _:
            text = " ".join(_sentence(rng, split) for _ in range(rng.randint(1, 3)))
            question = f"{rng.choice(_SENTENCE_REQUESTS)} {text}"
    return exact(question, text, shape)
