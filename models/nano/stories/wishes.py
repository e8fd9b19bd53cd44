"""What a story can be asked to mention, or to leave out: nouns, and the sentences that carry them.

Weather is asked for as a noun and told in many forms ("rain": "rainy", "raining"), hence `names`.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from random import Random
from typing import Final

from . import words


@dataclass(frozen=True, slots=True)
class Wish:
    """One noun of a request; `phrase` is how a request names it ("a kite", "some honey")."""

    word: str
    phrase: str
    sort: str  # "kind", "thing", "food", "place" or "weather"


_PLACES: Final = words.listed(
    "forest lake hill village sea farm tower river town hut mountain garden island barn mill "
    "bridge valley castle cave field market beach road well pond meadow harbour"
)
_WEATHER: Final = words.listed("rain snow wind fog ice frost thunder")
_ALONE: Final = {
    "thing": "[On the way, {A} [saw|found] a {x} {spot2}|{A} had a {x} with {him}|A {x} lay {spot1}"
    "|{A} [looked at|thought of] {his} {x}]. ",
    "food": "[{A} ate some {x}|There was {x} for lunch|The air smelled of {x}|{A} had some {x} in "
    "a bag]. ",
    "kind": "[A {x} [walked|came] by|A {x} [looked on|sat {spot2}|said hello]|{A} saw a {x} "
    "{spot1}]. ",
    "place": "[{A} [went|walked] [to|past] the {x}|{A} could see the {x} from there|It was near "
    "the {x}]. ",
    "weather": "[There was {x} [all day|for a while]|{A} did not mind the {x}|Then came the {x}, "
    "and it went away again]. ",
}
_TOGETHER: Final = {
    "thing": "[{B} had a {x} with {Bhim}|They [saw|found] a {x} {spot2}|{B} gave {A} a {x}]. ",
    "food": "[They [ate|shared] some {x}|{B} gave {A} some {x}|{B} [liked|loved] {x}]. ",
    "kind": "[A {x} [looked on|waved at them|said hello]|{B} told {A} about a {x}|They met a {x} "
    "{spot2}]. ",
    "place": "[They [went|walked] [to|past] the {x}|They rested near the {x}|{B} knew the way to "
    "the {x}]. ",
    "weather": "[There was {x} [all day|for a while]|They did not mind the {x}|Then came the {x}, "
    "and it went away again]. ",
}


def _some(word: str) -> str:
    return word if word.endswith("s") else f"some {word}"


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeio" or noun == "umbrella" else f"a {noun}"


WISHES: Final = (
    *(Wish(kind, _article(kind), "kind") for kind in words.KINDS),
    *(Wish(thing, _article(thing), "thing") for thing in words.THINGS),
    *(Wish(food, _some(food), "food") for food in words.FOODS),
    *(Wish(place, _article(place), "place") for place in _PLACES),
    *(Wish(weather, weather, "weather") for weather in _WEATHER),
)
BY_WORD: Final = {wish.word: wish for wish in WISHES}


def mention(wish: Wish, *, together: bool, rng: Random) -> str:
    """Return a sentence that mentions `wish`, a template of `grammar` with the slots of a story.

    `together` says that the hero has met the helper already.
    """
    templates = _TOGETHER if together and rng.random() < 0.7 else _ALONE
    return templates[wish.sort].replace("{x}", wish.word)


@lru_cache(maxsize=1024)
def _pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(word)}(?:s|es|y|ed|ing)?\b", re.IGNORECASE)


def names(text: str, word: str) -> bool:
    """Say whether `text` mentions `word`, also in the plural or as "rainy" and "raining"."""
    return _pattern(word).search(text) is not None


_SIGNS: Final = re.compile(r"[a-z]+")


def mentioned(text: str) -> list[Wish]:
    """Return every wish that `text` fulfils, in the order of `WISHES`."""
    found = _SIGNS.findall(text.lower())
    forms = {*found, *(f"{a} {b}" for a, b in pairwise(found))}
    forms |= {form[: -len(end)] for form in forms for end in ("s", "y") if form.endswith(end)}
    return [wish for wish in WISHES if wish.word in forms]
