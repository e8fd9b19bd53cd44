"""Stories to a request: 1 to 4 wanted things, sometimes unwanted ones, sometimes a plot or a name.

What a request asks for is read off a finished story, so that every answer fulfils its request.
Held out are pairs (hero's kind, what the plot turns on) and pairs of two wanted things.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from ..stories.grammar import enumerated, expand
from ..stories.story import Story, tell
from ..stories.wishes import BY_WORD, WISHES, Wish, mentioned, names
from .chat import SYSTEM_PROMPTS
from .example import Example, Split, Turn, ask, is_held_out

_SHORTEST: Final = "Write a story about {about}."
_REQUESTS: Final = (
    _SHORTEST,
    "[Write|Tell me|Please write|Please tell me|Can you tell me|Can you write|Make up|I want|"
    "I would like|Give me] a{size} story about {about}[.|.|.||!]",
    "[Write|Tell me] a{size} story about {about}, please.",
    "^a{size} story about {about}[.|]",
)
_UNWANTED_OFTEN: Final = ("rain", "snow", "wind", "fog", "ice", "forest", "river", "garden")


_OTHERS: Final = (0, 0, 1, 1, 2)
"""How many things that a story mentions by chance its request asks for."""
_SELDOM: Final = (0, 0, 0, 0, 1)
_WITHOUT: Final = 0.3
"""How many of the requests name things that are not to come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    text: str
    wanted: tuple[str, ...]
    unwanted: tuple[str, ...]


def _grade(request: _Request, answer: str) -> dict[str, float]:
    scores: dict[str, float] = {}
    if request.wanted:
        scores["wanted"] = sum(names(answer, w) for w in request.wanted) / len(request.wanted)
    if request.unwanted:
        left_out = sum(not names(answer, w) for w in request.unwanted)
        scores["unwanted left out"] = left_out / len(request.unwanted)
    return scores


def _unwanted(story: Story, count: int, rng: Random) -> tuple[Wish, ...]:
    pool = [BY_WORD[word] for word in _UNWANTED_OFTEN]
    if rng.random() < 0.4:
        pool = rng.sample(WISHES, 8)
    absent = [wish for wish in pool if not names(story.text, wish.word)]
    return tuple(rng.sample(absent, min(count, len(absent))))


def _wanted(
    story: Story, extras: Sequence[Wish], rng: Random, *, others: Sequence[int], ordered: bool
) -> list[Wish]:
    """Return 1 to 4 things that `story` mentions, the extras first of all.

    `ordered`: as the story comes to them; otherwise in no order.
    """
    by_chance = [w for w in mentioned(story.text) if w not in extras and w.word != story.kind]
    rng.shuffle(by_chance)
    wanted = [*extras, *by_chance[: rng.choice(others)]][:4]
    if not ordered:
        rng.shuffle(wanted)
    return wanted


def _worded(
    story: Story,
    extras: Sequence[Wish],
    rng: Random,
    *,
    others: Sequence[int],
    ordered: bool,
    without: float,
) -> _Request:
    hero = BY_WORD[story.kind]
    wanted = _wanted(story, extras, rng, others=others, ordered=ordered)
    style = rng.random()
    if style < 0.15 and wanted:  # nobody in particular
        about = enumerated(wish.phrase for wish in wanted)
    else:
        named = f" [named|called] {story.name}" if story.name and rng.random() < 0.3 else ""
        plot = f" {story.request}" if style < 0.5 else ""
        wanted = wanted[: 3 - bool(named) - bool(plot)]
        if style >= 0.8 and wanted and not named:
            about = enumerated(wish.phrase for wish in (hero, *wanted))
        else:
            rest = f"[,|] with {enumerated(w.phrase for w in wanted)}" if wanted else ""
            about = f"{hero.phrase}{named}{plot}{rest}"
        wanted = [hero, *wanted]
    unwanted = _unwanted(story, rng.choice((1, 1, 2)), rng) if rng.random() < without else ()
    if unwanted:
        phrases = [f"without {w.phrase.removeprefix('some ')}" for w in unwanted]
        about += f"[, but|,] {enumerated(phrases)}"
    size = {"short": "[ short| short|]", "long": "[ long| long|]", "middle": ""}[story.length]
    text = expand(rng.choice(_REQUESTS), {"size": size, "about": about}, rng)
    if rng.random() < 0.05:
        text = text.lower()
    words = [wish.word for wish in wanted]
    if story.name and story.name in text:
        words.append(story.name)
    if style < 0.5 and story.topic in text:
        words.append(story.topic)
    return _Request(
        text=text,
        wanted=tuple(dict.fromkeys(word for word in words if names(story.text, word))),
        unwanted=tuple(wish.word for wish in unwanted),
    )


def draw(rng: Random, split: Split, *, promptly: bool = False) -> tuple[Story, tuple[Wish, ...]]:
    """Return a story of `split` and what it mentions beyond its plot."""
    while True:
        extras = tuple(rng.sample(WISHES, rng.choice((0, 0, 1, 1, 2, 2, 3))))
        story = tell(rng, extras, promptly=promptly)
        pair = "/".join(sorted(wish.word for wish in extras[:2]))
        if story.kind in {wish.word for wish in extras}:
            continue
        held_out = is_held_out(story.combination) or (len(extras) > 1 and is_held_out(pair))
        if held_out == (split == "held_out"):
            return story, extras


def example(rng: Random, split: Split) -> Example:
    """Return a request and a story that fulfils it."""
    return _example(rng, split, promptly=False, others=_OTHERS)


def prompt_example(rng: Random, split: Split) -> Example:
    """The same, where the story comes to what is asked for at once, and seldom by chance.

    A word that may still come by chance is one that the likeliest next sentence need not hold; a
    model that has learned that forgets it when it always takes the likeliest.
    """
    return _example(rng, split, promptly=True, others=_SELDOM)


def ordered_example(rng: Random, split: Split) -> Example:
    """The same, where the story comes to things in the order of the request.

    What is to be said next is then what stands behind what was said last. A small model that has to
    know which things are left says one of them twice. Such stories are more alike, so that there is
    more to learn of what is not to come.
    """
    return _example(rng, split, promptly=True, others=_SELDOM, ordered=True, without=0.5)


def _example(
    rng: Random,
    split: Split,
    *,
    promptly: bool,
    others: Sequence[int],
    ordered: bool = False,
    without: float = _WITHOUT,
) -> Example:
    story, extras = draw(rng, split, promptly=promptly)
    request = _worded(story, extras, rng, others=others, ordered=ordered, without=without)
    turns = ask(request.text, story.text)
    if rng.random() < 0.15:
        turns = (Turn(role="system", text=rng.choice(SYSTEM_PROMPTS)), *turns)
    wishes = f"{len(request.wanted)} wanted"
    return Example(turns=turns, grade=lambda answer: _grade(request, answer), tags=(wishes,))


def plain(rng: Random, split: Split) -> str:
    """Return a story as plain text, with a title now and then."""
    story, _ = draw(rng, split)
    return (f"{story.title}\n\n" if rng.random() < 0.08 else "") + story.text
