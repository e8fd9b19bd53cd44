"""Recall: facts about people and things, scattered over a long text, and questions about them.

The right answer is the sentence of the text that the question is about. Each pair of somebody and
something stands in a text once, among others that differ from it in only one of the two. Held out
are pairs (what the fact is about, its value).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from ..stories import words
from ..stories.grammar import expand
from .example import Example, Split, Turn, ask, is_held_out

SHORTEST_WORDS: Final = 20
LONGEST_WORDS: Final = 1350  # about 1,800 tokens
_CITIES: Final = words.listed(
    "Toruma Belin Kasso Marvik Olden Pirano Sarti Velmo Zandor Arbon Dorna Felis Gorlan Hesta "
    "Ilmar Jarno Kelda Lumis Nestor Orvo"
)
_JOBS: Final = words.listed(
    "baker farmer teacher doctor painter sailor tailor singer miller gardener judge nurse pilot "
    "carpenter dancer writer"
)
_PEOPLE: Final = (*words.HE_NAMES, *words.SHE_NAMES)
_FILLER: Final = (
    "{weather}. ",
    "^the {kind} [walked|ran|sat] {spot}. ",
    "A {trait} {kind} [looked at the sky|slept all day|sang a song|hummed a tune]. ",
    "[In the morning|In the evening|At noon|After that|Then], the {kind} [ate {food}|drank "
    "water|went home|came back|was very tired]. ",
    "[There was|They saw] a {colour} {thing} {spot}. ",
    "It was a [long|quiet|good|warm|cold] [day|night|week]. ",
    "[Nobody|Everybody] [talked|knew|asked] about it. ",
    "The {kind} and the {other} [played together|talked for a while|went for a walk]. ",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing to know: what it is about, the word asked for, the sentence, the question.

    In `_SORTS` these are format strings over `_POOLS`.
    """

    about: str
    value: str
    sentence: str
    question: str


_POOLS: Final[Mapping[str, Sequence[str | int]]] = {
    "who": _PEOPLE,
    "thing": words.THINGS,
    "colour": words.COLOURS,
    "city": _CITIES,
    "job": _JOBS,
    "food": words.FOODS,
    "spot": words.SPOTS,
    "number": range(100, 10_000),
}
_SORTS: Final = (
    Fact(
        about="{who}'s {thing}",
        value="{colour}",
        sentence="{who}'s {thing} is {colour}.",
        question="What colour is {who}'s {thing}?",
    ),
    Fact(
        about="{who} lives",
        value="{city}",
        sentence="{who} lives in {city}.",
        question="Where does {who} live?",
    ),
    Fact(
        about="{who} works",
        value="{job}",
        sentence="{who} works as a {job}.",
        question="What does {who} work as?",
    ),
    Fact(
        about="{who} likes",
        value="{food}",
        sentence="{who} likes {food}.",
        question="What does {who} like?",
    ),
    Fact(
        about="number of the {colour} {thing}",
        value="{number}",
        sentence="The number of the {colour} {thing} is {number}.",
        question="What is the number of the {colour} {thing}?",
    ),
    Fact(
        about="{who}'s {thing} lies",
        value="{spot}",
        sentence="{who}'s {thing} lies {spot}.",
        question="Where is {who}'s {thing}?",
    ),
)


def _fact(rng: Random) -> Fact:
    sort = rng.choice(_SORTS)
    slots = {name: rng.choice(_POOLS[name]) for name in re.findall(r"\{(\w+)\}", sort.sentence)}
    return Fact(
        about=sort.about.format(**slots),
        value=sort.value.format(**slots),
        sentence=sort.sentence.format(**slots),
        question=sort.question.format(**slots),
    )


def _facts(rng: Random, count: int, split: Split) -> list[Fact]:
    found: dict[str, Fact] = {}
    while len(found) < count:
        fact = _fact(rng)
        if is_held_out(f"{fact.about}/{fact.value}") == (split == "held_out"):
            found[fact.about] = fact
    return list(found.values())


def _filler(rng: Random) -> str:
    kind, other = rng.sample(words.KINDS, 2)
    slots = {
        "weather": rng.choice(list(words.WEATHERS.values())),
        "kind": kind,
        "other": other,
        "spot": rng.choice(words.SPOTS),
        "trait": rng.choice(words.TRAITS),
        "food": rng.choice(words.FOODS),
        "colour": rng.choice(words.COLOURS),
        "thing": rng.choice(words.THINGS),
    }
    return expand(rng.choice(_FILLER), slots, rng)


def _text(rng: Random, facts: list[Fact], length_words: int) -> tuple[str, dict[str, float]]:
    """Return a text of about `length_words` words, and how deep in it each fact stands (0 to 1)."""
    sentences: list[str] = []
    size = sum(len(fact.sentence.split()) for fact in facts)
    while size < length_words:
        sentences.append(_filler(rng))
        size += len(sentences[-1].split())
    fact_of = {fact.sentence: fact for fact in facts}
    for fact in facts:
        sentences.insert(rng.randrange(len(sentences) + 1), fact.sentence)
    depths = {
        fact_of[sentence].about: index / max(1, len(sentences) - 1)
        for index, sentence in enumerate(sentences)
        if sentence in fact_of
    }
    lines = "\n" if rng.random() < 0.2 else " "
    return lines.join(sentences), depths


def _tags(depth: float) -> tuple[str, ...]:
    quarter = min(3, int(depth * 4))
    return (f"depth {quarter * 25}-{quarter * 25 + 25}%",)


def _grade(fact: Fact, answer: str) -> dict[str, float]:
    said = answer.strip()
    return {"right": float(fact.value in said and len(said) <= len(fact.sentence) + 40)}


def example(
    rng: Random, split: Split, *, length_words: int | None = None, questions: int = 1
) -> Example:
    """Return a text of about `length_words` words, and `questions` turns that ask about it.

    Without `length_words` the length is drawn, short ones more often. Graded is the last answer;
    its tags name the depth of the fact. A text in a system prompt is asked about as well.
    """
    if length_words is None:
        length_words = int(SHORTEST_WORDS * 10 ** rng.uniform(0, 1.1))
    most = max(2, min(30, length_words // 12))
    facts = _facts(rng, rng.randint(min(max(2, questions), most), most), split)
    text, depths = _text(rng, facts, length_words)
    asked = [rng.choice(facts) for _ in range(questions)]
    first, *others = asked
    if rng.random() < 0.1:
        turns = (
            Turn(role="system", text=text),
            *ask(first.question, first.sentence),
        )
    else:
        turns = ask(f"{text}\n\n{first.question}", first.sentence)
    for fact in others:
        turns += ask(fact.question, fact.sentence)
    last = asked[-1]
    return Example(
        turns=turns, grade=lambda answer: _grade(last, answer), tags=_tags(depths[last.about])
    )
