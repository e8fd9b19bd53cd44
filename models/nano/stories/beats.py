"""What a plot is, and the phrases that plots share, in the template language of `grammar`.

Slots of the hero are `{A}` and `{he} {him} {his}`, of the helper `{B}` and `{Bhe} {Bhim} {Bhis}`,
`{newB}` introduces the helper. `{thing}` is the hero's object. A beat that starts with `~` may be
left out: short stories skip it, long ones keep it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One kind of story.

    `request` reads after "a story about a fox "; `topics` maps what the story turns on to the
    slots that only this topic fills.
    """

    request: str
    beats: tuple[str, ...]
    topics: Mapping[str, Mapping[str, str]]


SAD: Final = "[sad|upset|unhappy|very sad|so sad that {he} cried]"
GLAD: Final = "[happy|glad|full of joy|very happy|so happy that {he} danced]"
MEET: Final = (
    "[Just then|At that moment|Then|Soon|After a while|A little later], "
    "[{newB} came by|{A} met {newB}|{newB} came along the path|{A} saw {newB}|{newB} stopped].\n"
)
ASK: Final = (
    '["What is wrong, {Avoc}?"|"Why are you so sad?"|"Can I help you?"|"Are you all right?"|'
    '"Why do you look so sad?"|"Hello! What happened?"] '
    "[asked {B}|{B} asked|said {B}|asked {B} in a soft voice]. "
)
OFFER: Final = (
    '["Do not worry," said {B}. "I will help you."|"I can help," said {B}.|'
    '{B} smiled. "Let us try together," {Bhe} said.|"Two can do more than one," said {B}.|'
    '"Do not cry," said {B}. "We will find a way."|{B} thought for a moment. "I know what to '
    'do," {Bhe} said.] '
)
THANK: Final = (
    '["Thank you, {Bvoc}!" said {A}.|"Thank you so much!" said {A}.|{A} hugged {B} and thanked '
    '{Bhim}.|"You are a good friend," {A} said to {B}.|{A} said thank you and gave {B} some '
    '{food}.|"I will never forget this," said {A}.] '
)


def topic(names: str, text: str) -> dict[str, str]:
    """Return one topic's slots: `text` cut at its outer bars, keyed by the words of `names`."""
    values = re.split(r"\|(?![^\[]*\])", text)
    return dict(zip(names.split(), values, strict=True))
