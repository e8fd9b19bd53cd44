"""The template language of the corpus: alternatives, slots, capitals and articles.

`[a|b|]` picks one alternative, `{slot}` inserts a value (which may hold templates itself), and `^`
makes the next letter a capital where that cannot be seen from the full stop before it.
"""

import re
from collections.abc import Iterable, Mapping
from random import Random

_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_CAPITAL = re.compile(r"\^(\W*)(\w)")
_SENTENCE_START = re.compile(r"((?:^|[.!?] |\.\" |\n)\"?)([a-z])")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])(?!uni|one|use)")


def expand(template: str, slots: Mapping[str, str], rng: Random) -> str:
    """Return one text of `template`; an unknown slot is a KeyError."""
    text = template
    while True:
        chosen = _ALTERNATIVES.sub(lambda m: rng.choice(m.group(1).split("|")), text)
        if chosen == text:
            chosen = _SLOT.sub(lambda m: slots[m.group(1)], text)
            if chosen == text:
                return _polish(text)
        text = chosen


def _polish(text: str) -> str:
    text = re.sub(r" +", " ", text).strip()
    text = re.sub(r" ?\n ?", "\n", text)
    text = _CAPITAL.sub(lambda m: m.group(1) + m.group(2).upper(), text)
    text = _SENTENCE_START.sub(lambda m: m.group(1) + m.group(2).upper(), text)
    return _ARTICLE.sub(r"\1n ", text)


def enumerated(phrases: Iterable[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    *first, last = phrases
    return f"{', '.join(first)} and {last}" if first else last
