"""What the exact tasks share: words to fill them with, the draw for a split, the grading."""

from collections.abc import Callable
from random import Random
from typing import Final, TypeVar

from ..stories.words import COLOURS, FOODS, HE_NAMES, KINDS, SHE_NAMES, THINGS, TRAITS
from ..training.common_words import COMMON_WORDS
from .example import Example, Split, ask, is_held_out

_Parts = TypeVar("_Parts", bound=tuple[str, ...])

NAMES: Final = HE_NAMES + SHE_NAMES
PHRASES: Final = tuple(
    dict.fromkeys((*THINGS, *FOODS, *KINDS, *COLOURS, *TRAITS, *COMMON_WORDS)),
)
# Lists that are cut at spaces need items without any.
WORDS: Final = tuple(phrase for phrase in PHRASES if " " not in phrase)
_CONSONANTS: Final = (*"bdfgklmnprstv", "sh", "tr", "pl")
_SYLLABLES: Final = tuple(c + v for c in _CONSONANTS for v in "aeiou")
_ENDINGS: Final = ("", "", "n", "l", "r", "s", "k")


def made_up(rng: Random) -> str:
    """Return a word of two or three syllables that is on no list."""
    stem = "".join(rng.choices(_SYLLABLES, k=rng.choice((2, 2, 3))))
    return stem + rng.choice(_ENDINGS)


def made_up_name(rng: Random) -> str:
    """Return a made-up word that reads as the name of a person or a town."""
    return made_up(rng).capitalize()


def combination(ability: str, *parts: str) -> str:
    """Return the name under which `is_held_out` places an example."""
    return "/".join((ability, *parts))


def draw_for(split: Split, ability: str, draw: Callable[[], _Parts]) -> _Parts:
    """Draw texts until their combination is on the side of `split`."""
    while True:
        parts = draw()
        if is_held_out(combination(ability, *parts)) == (split == "held_out"):
            return parts


def exact(question: str, answer: str, *tags: str) -> Example:
    """Return an example whose only right answer is `answer`, but for spaces around it."""

    def grade(given: str) -> dict[str, float]:
        return {"exact": float(given.strip() == answer)}

    return Example(turns=ask(question, answer), grade=grade, tags=tags)
