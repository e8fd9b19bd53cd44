"""The training corpus: an endless, seeded stream of documents of all abilities.

A document is a conversation in the form of the chat template, or plain text. Which of its tokens
are to be learned is decided here: the answers of conversations, and all of a plain text.
"""

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Final

from ..abilities import (
    chat,
    copying,
    extraction,
    game24,
    recall,
    rewriting,
    storytelling,
    translation,
)
from ..abilities.example import Example, Split, Turn
from . import stumbles

END_OF_DOCUMENT: Final = "<|endoftext|>"
START_OF_TURN: Final = "<|im_start|>"
END_OF_TURN: Final = "<|im_end|>"

Maker = Callable[[Random, Split], str]


def turn(role: str, text: str) -> str:
    """Return one turn of a conversation; `chat_template.jinja` writes the same."""
    return f"{START_OF_TURN}{role}\n{text}{END_OF_TURN}\n"


def conversation(turns: tuple[Turn, ...]) -> str:
    """Return the turns in the form of the chat template, without the end of the document."""
    return "".join(turn(each.role, each.text) for each in turns).rstrip("\n")


def _talk(make: Callable[[Random, Split], Example]) -> Maker:
    return lambda rng, split: conversation(make(rng, split).turns)


def _dense_recall(rng: Random, split: Split) -> str:
    length = int(recall.SHORTEST_WORDS * 10 ** rng.uniform(0, 0.85))
    return conversation(
        recall.example(rng, split, length_words=length, questions=rng.randint(5, 9)).turns
    )


def _long_recall(rng: Random, split: Split) -> str:
    length = int(rng.uniform(150, recall.LONGEST_WORDS))
    return conversation(
        recall.example(rng, split, length_words=length, questions=rng.randint(6, 12)).turns
    )


# How many documents of a kind, relative to the others. They differ in length: the card's table
# says what share of the learned tokens each has.
Mix = Mapping[Maker, float]
_MAIN: Final[Mix] = {
    _talk(storytelling.example): 14.0,
    storytelling.plain: 0.7,
    _talk(game24.example): 32.0,
    _dense_recall: 7.0,
    _talk(copying.example): 36.0,
    _talk(extraction.example): 7.0,
    _talk(translation.example): 10.0,
    _talk(rewriting.example): 15.0,
    _talk(chat.example): 1.5,
}
# More of what is still weak, besides stories that keep to their request.
_LATER: Final[Mix] = {
    _talk(game24.example): 32.0,
    _dense_recall: 7.0,
    _talk(copying.example): 30.0,
    _talk(extraction.example): 6.0,
    _talk(translation.example): 14.0,
    _talk(rewriting.example): 24.0,
    _talk(chat.example): 2.0,
}
_LAST: Final[Mix] = {_talk(storytelling.prompt_example): 26.0, **_LATER}
_ORDERED: Final[Mix] = {
    _talk(storytelling.ordered_example): 34.0,
    **_LATER,
    _talk(rewriting.example): 8.0,
}
_STUMBLES: Final[Mix] = {
    _talk(stumbles.missed_solution): 2.0,
    _talk(stumbles.steps_with_repeats): 2.0,
    _talk(stumbles.code_with_repeats): 2.0,
}
_ALL_STUMBLES: Final[Mix] = {**_STUMBLES, _talk(stumbles.without_end): 6.0}
_WEAK: Final[Mix] = {_talk(translation.example): 4.0, _talk(rewriting.example): 9.0}
MIXES: Final[Mapping[str, Mix]] = {
    "main": _MAIN,
    "last": _LAST,
    "main and stumbles": {**_MAIN, **_WEAK, **_STUMBLES},
    "last and stumbles": {**_LAST, **_STUMBLES},
    "ordered and stumbles": {**_ORDERED, **_ALL_STUMBLES},
}
_LONG_RECALL_WEIGHT: Final = 10.0


def documents(
    seed: int | str, split: Split = "train", *, mix: str = "main", long: bool = False
) -> Iterator[str]:
    """Yield documents without end; the same arguments give the same ones.

    `mix`: one of `MIXES`. `long` adds texts of up to a whole context.
    """
    rng = Random(f"{split}/{seed}")
    weighted = {_long_recall: _LONG_RECALL_WEIGHT, **MIXES[mix]} if long else MIXES[mix]
    makers, weights = list(weighted), list(weighted.values())
    while True:
        (make,) = rng.choices(makers, weights)
        yield make(rng, split)
