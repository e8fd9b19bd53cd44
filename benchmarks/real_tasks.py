"""Tasks for trained models: prose, code, summaries, edits and quotations.

What is summarised, edited and quoted is this project's own: paragraphs of its documents, functions
of its code. So answers repeat their prompts as much as they do where people use such models.
"""

import ast
import re
from collections.abc import Callable, Mapping
from functools import cache
from random import Random
from typing import Final

from benchmarks.provenance import ROOT

Messages = list[dict[str, str]]

_HEROES: Final = (
    *("a lighthouse keeper", "two sisters", "an old clockmaker", "a lost dog"),
    *("a young pilot", "a night nurse", "a retired judge", "three thieves"),
)
_PLACES: Final = (
    *("on a small island", "at a railway station", "in a winter market", "in a desert town"),
    *("on a mountain farm", "in a library", "on a ship", "at a funfair"),
)
_OBJECTS: Final = (
    *("a letter", "a broken violin", "a map", "a blue door", "a key"),
    *("a photograph", "a storm", "an old promise", "a stone"),
)
_LANGUAGES: Final = ("Python", "JavaScript", "Go", "C", "Rust")
_PROGRAMS: Final = (
    "merges two sorted lists",
    "counts the words of a text file",
    "finds all prime numbers below n",
    "parses a CSV line with quoted fields",
    "reverses a linked list",
    "computes the edit distance of two strings",
    "checks whether brackets are balanced",
    "rotates a matrix by 90 degrees",
    "converts Roman numerals to integers",
    "finds the shortest path in a grid",
    "formats a number of bytes for people",
    "removes duplicates and keeps the order",
)
_SENTENCE: Final = re.compile(r"[A-Z][^.|`#*\n]{60,200}\.")


def prose(rng: Random) -> Messages:
    """A short story."""
    hero, place, thing = map(rng.choice, (_HEROES, _PLACES, _OBJECTS))
    return _asked(f"Write a short story about {hero} {place}, and about {thing}.")


def code(rng: Random) -> Messages:
    """A function with an explanation."""
    language, program = rng.choice(_LANGUAGES), rng.choice(_PROGRAMS)
    return _asked(f"Write a {language} function that {program}, and explain it.")


def summary(rng: Random) -> Messages:
    """Two sentences about a page."""
    return _asked(f"Summarise this text in two sentences.\n\n{_text(rng)}")


def edit(rng: Random) -> Messages:
    """A function again, with another name for one of its arguments."""
    source, name = rng.choice(_functions())
    return _asked(
        f"Rename `{name}` to `value` in this code. Answer with the whole code.\n\n"
        f"```python\n{source}\n```"
    )


def quote(rng: Random) -> Messages:
    """The first sentences of a text, word for word."""
    return _asked(f"Copy this text word for word, without any comment.\n\n{_text(rng)}")


TASKS: Final[Mapping[str, Callable[[Random], Messages]]] = {
    "prose": prose,
    "code": code,
    "summary": summary,
    "edit": edit,
    "quote": quote,
}


def _asked(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def _text(rng: Random) -> str:
    sentences = _sentences()
    begin = rng.randrange(len(sentences) - 8)
    return " ".join(sentences[begin : begin + 8])


@cache
def _sentences() -> tuple[str, ...]:
    """Plain sentences of the documents, in their order."""
    found: list[str] = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        joined = path.read_text(encoding="utf-8").replace("\n", " ")
        found += _SENTENCE.findall(joined)
    return tuple(found)


@cache
def _functions() -> tuple[tuple[str, str], ...]:
    """Short functions of the decoding methods, and the name of an argument of each."""
    found: list[tuple[str, str]] = []
    for path in sorted((ROOT / "decoding").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef):
                continue
            names = [each.arg for each in node.args.args if each.arg != "self"]
            text = ast.get_source_segment(source, node) or ""
            if names and 8 <= text.count("\n") <= 20:
                found.append((text, names[0]))
    return tuple(found)
