"""The training corpus: an endless, seeded stream of documents, and its held-out part.

Half of the documents are plain stories, half are conversations that ask for one. A document is
held out when the pair (hero's kind, what the story turns on) is: no training document tells of a
held-out pair, though it tells of either alone. Which pairs those are depends on nothing but their
names.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final, Literal

from .grammar import expand
from .story import Story, tell
from .talk import SYSTEM_PROMPTS, exchange

END_OF_DOCUMENT: Final = "<|endoftext|>"
START_OF_TURN: Final = "<|im_start|>"
END_OF_TURN: Final = "<|im_end|>"

HELD_OUT_ONE_IN: Final = 20
Split = Literal["train", "held_out"]

_REQUESTS: Final = (
    "[Write|Tell me|Tell|Please write|Please tell me|Can you tell me|Can you write|Could you write|"
    "Make up|I want|I would like|Give me|I want to hear] {what}{who}[.|.|.||!]",
    "[Write|Tell me] {what}{who}, please.",
    "^{what}{who}[|, please|.]",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document of the corpus, in the form the tokenizer reads.

    `text` holds the turn markers of a conversation but not the end-of-document marker. `story` is
    None where only small talk is exchanged.
    """

    text: str
    story: Story | None


def is_held_out(combination: str) -> bool:
    """Say whether documents about `combination` are kept for evaluation."""
    return hashlib.sha256(combination.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def turn(role: str, text: str) -> str:
    """Return one turn of a conversation; `chat_template.jinja` writes the same."""
    return f"{START_OF_TURN}{role}\n{text}{END_OF_TURN}\n"


def ask_for(story: Story, rng: Random) -> str:
    """Word a request that `story` fulfils."""
    size = {"short": "[ short| short| little|]", "long": "[ long| long|]", "middle": ""}
    hero = f"a {story.kind}"
    named = f"{hero} [named|called] {story.name}" if story.name else hero
    about = [
        hero,
        hero,
        named,
        named,
        f"{hero} {story.request}",
        f"{named} {story.request}",
        f"{hero} and a {story.helper}",
        f"a {story.helper} and {hero}",
        f"{hero} who [lives|lived] {story.home}",
    ]
    if story.thing in story.request:
        about += [f"a {story.thing}", f"{hero} and a {story.thing}"]
    who = rng.choice(about)
    slots = {"what": f"a{size[story.length]} story", "who": f" about {who}"}
    if rng.random() < 0.08:
        slots["who"] = ""
    asked = expand(rng.choice(_REQUESTS), slots, rng)
    return asked.lower() if rng.random() < 0.08 else asked


def documents(seed: int | str, split: Split = "train") -> Iterator[Document]:
    """Yield documents without end; the same seed and split give the same ones."""
    rng = Random(f"{split}/{seed}")
    while True:
        story = tell(rng)
        if is_held_out(story.combination) != (split == "held_out"):
            continue
        shape = rng.random()
        if shape < 0.5:
            title = f"{story.title}\n\n" if rng.random() < 0.08 else ""
            yield Document(text=title + story.text, story=story)
        elif shape < 0.9 or split == "held_out":
            yield Document(text=_conversation(story, rng), story=story)
        else:
            yield Document(text=_small_talk(rng), story=None)


def _system(rng: Random) -> str:
    return turn("system", rng.choice(SYSTEM_PROMPTS)) if rng.random() < 0.25 else ""


def _conversation(story: Story, rng: Random) -> str:
    before = after = ""
    if rng.random() < 0.15:
        before = _exchange(rng)
    if rng.random() < 0.15:
        after = _exchange(rng)
    asked = turn("user", ask_for(story, rng)) + turn("assistant", story.text)
    return (_system(rng) + before + asked + after).rstrip("\n")


def _small_talk(rng: Random) -> str:
    turns = "".join(_exchange(rng) for _ in range(rng.choice((1, 1, 2, 3))))
    return (_system(rng) + turns).rstrip("\n")


def _exchange(rng: Random) -> str:
    said, answer = exchange(rng)
    return turn("user", said) + turn("assistant", answer)
