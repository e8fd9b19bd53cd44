"""One story: a cast, a plot and a setting drawn at random, and told so that they stay the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from . import words
from .beats import Plot
from .grammar import expand
from .plots_alone import FEAR, LOST, SKILL
from .plots_together import BUILD, ERRAND, FRIEND, GIFT, RESCUE, SHARE
from .wishes import Wish, mention

MORALS: Final[dict[str, tuple[Plot, str]]] = {
    "lost": (LOST, "took good care of {his} {thing}|always knew where {his} {thing} was"),
    "skill": (SKILL, "knew that you must try again and again|was proud to {skill}"),
    "fear": (FEAR, "knew that even the brave are afraid sometimes|was not afraid of {fear}"),
    "errand": (ERRAND, "knew that two find a way where one cannot|was never afraid of a long way"),
    "build": (BUILD, "asked a friend when something was hard|knew that work is lighter for two"),
    "share": (SHARE, "liked to share|knew that sharing makes everything nicer"),
    "rescue": (
        RESCUE,
        "was called the bravest {kind} in the land|always helped when someone called",
    ),
    "gift": (GIFT, "knew that the best gifts are made with love|liked to make gifts"),
    "friend": (FRIEND, "was not alone anymore|had a friend to play with"),
}
_OPENINGS: Final = (
    "[Once upon a time|Once upon a time|Once upon a time|Long ago|Many years ago], there [was|"
    "lived] {newA}[| {home}]. ",
    "Once upon a time{inland}, {newA} lived {home}. ",
    "There [was once|once was|once lived] {newA} {home}. ",
    "{newA} lived {home}. ",
    "^{home} lived {newA}. ",
    "This is the story of {newA}, who lived {home}. ",
    "Once there was {newA}. {he} lived {home}. ",
)
_NAMED_OPENINGS: Final = (
    "{name} was a {trait} {kind}. {he} lived {home}. ",
    "{name} the {kind} lived {home}. ",
    "{name} was a {trait} {kind} who lived {home}. ",
    "{name} was no ordinary {kind}. ",
)
_DETAILS: Final = (
    "{he} [loved|liked] {food} [more than anything|very much|and sunny days]. ",
    "{he} was [always|very] {trait2}. ",
    "Everybody [liked|knew] the {trait} {kind}. ",
    "Every morning {he} [sang a song|ate {food}|looked out of the window|"
    "said hello to the birds]. ",
    "{he} [hummed|laughed|whistled] all day long. ",
    "At night {he} [looked at the stars|slept in a soft bed|dreamed of far lands]. ",
    "",
    "",
)
_ENDINGS: Final = (
    "From that day on, {A} {moral}. ",
    "And from then on, {A} {moral}. ",
    "After that, {A} {moral}. ",
    "That night, {A} [slept well|fell asleep with a smile|dreamed of the day]. ",
    "In the evening, {A} [went home with a smile|sat by the fire and smiled|told everyone about "
    "it]. ",
    "{B} and {A} [became|were] [good|best|dear] friends [from that day on|after that|and met every "
    "day]. ",
    "[The two friends|{A} and {B}] [walked home under the stars|ate {food} together|laughed until "
    "the sun went down]. ",
)
_CROWDS: Final = ("the children", "the birds", "the frogs", "the ducks", "some mice")
_CODAS: Final = (
    "The end.",
    "And they lived happily ever after.",
    "And {he} was never [lonely|sad] again.",
    "It had been a [good|wonderful|long] day.",
    "",
    "",
    "",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A finished story and what it is about, so that a request for it can be worded."""

    kind: str
    name: str | None
    helper: str
    topic: str
    thing: str
    home: str
    title: str
    request: str  # reads after "a story about a fox "
    length: str  # "short", "middle" or "long"
    text: str

    @property
    def combination(self) -> str:
        """What the held-out split is made over: who the story is about and what it turns on."""
        return f"{self.kind}/{self.topic}"


def _pronouns(kind: str, rng: Random) -> tuple[str, str, str]:
    she = kind in words.SHE_KINDS or (kind not in words.HE_KINDS and rng.random() < 0.5)
    return ("she", "her", "her") if she else ("he", "him", "his")


def _name(pronoun: str, rng: Random) -> str:
    return rng.choice(words.SHE_NAMES if pronoun == "she" else words.HE_NAMES)


def tell(rng: Random, extras: Sequence[Wish] = (), *, promptly: bool = False) -> Story:
    """Return a new story of about 60 to 300 words that also mentions each of `extras`.

    `promptly`: at the first place for it, without exception.
    """
    kind = rng.choice(words.COMMON_KINDS if rng.random() < 0.25 else words.KINDS)
    he, him, his = _pronouns(kind, rng)
    name = _name(he, rng) if rng.random() < 0.7 else None
    helper = rng.choice([k for k in words.KINDS if k != kind])
    bhe, bhim, bhis = _pronouns(helper, rng)
    bname = _name(bhe, rng) if rng.random() < 0.5 else None
    if bname == name:
        bname = None
    plot, moral = MORALS[rng.choice(list(MORALS))]
    topic = rng.choice(list(plot.topics))
    trait, trait2 = rng.sample(words.TRAITS, 2)
    btrait = rng.choice(words.HELPER_TRAITS)
    spots = rng.sample(words.SPOTS, 3)
    junk = rng.sample(words.THINGS, 2)
    weather = rng.choice(list(words.WEATHERS))
    home = rng.choice(words.HOMES)
    slots = {
        "kind": kind, "he": he, "him": him, "his": his, "name": name or "",
        "A": f"[{name}|{name}|{name}|{name}|{name}|the {kind}]" if name else f"the {kind}",
        "Avoc": name or f"little {kind}",
        "newA": f"a {trait} {kind} [named|called] {name}" if name else f"a {trait} {kind}",
        "trait": trait, "trait2": trait2, "home": home,
        "inland": rng.choice(("", "", " in a land far away", " when the world was young")),
        "B": bname or f"the {helper}", "Bhe": bhe, "Bhim": bhim, "Bhis": bhis,
        "Bvoc": bname or f"dear {helper}",
        "newB": f"a {btrait} {helper}" + (f" named {bname}" if bname else ""),
        "thing": rng.choice(words.THINGS), "colour": rng.choice(words.COLOURS),
        "food": rng.choice(words.FOODS), "parent": rng.choice(words.PARENTS),
        "spot1": spots[0], "spot2": spots[1], "spot3": spots[2],
        "junk1": f"an old {junk[0]}", "junk2": f"a broken {junk[1]}",
        "junkpeople": rng.choice(_CROWDS),
        "weather": weather, "wsentence": words.WEATHERS[weather],
        "moral": rng.choice(moral.split("|")),
        **plot.topics[topic],
    }  # fmt: skip
    adjective = rng.choice(words.THING_ADJECTIVES + words.COLOURS)
    slots["mything"] = f"{adjective} {slots['thing']}"
    length = rng.choice(("short", "short", "short", "middle", "middle", "middle", "long"))
    template = _arrange(
        plot, length, named=name is not None, extras=extras, promptly=promptly, rng=rng
    )
    text = expand(template, slots, rng)
    text = text.replace("\n", "\n\n" if rng.random() < 0.5 else " ")
    request = expand(plot.request, slots, rng)
    return Story(
        kind=kind,
        name=name,
        helper=helper,
        topic=topic,
        thing=slots["thing"],
        home=home,
        title=_title(kind, name, slots["thing"] if slots["thing"] in text else helper, rng),
        request=request[0].lower() + request[1:],
        length=length,
        text=text,
    )


def _arrange(
    plot: Plot, length: str, *, named: bool, extras: Sequence[Wish], promptly: bool, rng: Random
) -> str:
    """Return the template of a whole story."""
    keep = {"short": 0.0, "middle": 0.5, "long": 1.0}[length]
    parts = [rng.choice(_OPENINGS + _NAMED_OPENINGS if named else _OPENINGS)]
    if length != "short":
        parts.append(rng.choice(_DETAILS))
    if length == "long":
        parts.append(rng.choice(_DETAILS[:2]))
    if rng.random() < 0.3:
        parts.append("\n")
    places = [1 if promptly else _place(rng, len(plot.beats)) for _ in extras]
    for index, beat in enumerate(plot.beats):
        if not beat.startswith("~"):
            parts.append(beat)
        elif rng.random() < keep:
            parts.append(beat[1:])
        together = any("newB" in part for part in parts)
        parts += [
            mention(wish, together=together, rng=rng)
            for wish, place in zip(extras, places, strict=True)
            if place == index
        ]
    if length != "short" or rng.random() < 0.5:
        parts.append("\n")
    if length == "long":
        parts.append(rng.choice(_ENDINGS[3:5]))
        parts.append(rng.choice(_ENDINGS[:3]))
    else:
        parts.append(rng.choice(_ENDINGS))
    parts.append(rng.choice(_CODAS))
    return "".join(parts)


def _place(rng: Random, beat_count: int) -> int:
    """Return the beat after which something is mentioned: the second, or each later one less.

    At each place until then it is likelier to come now than to wait, for a model that always takes
    the likeliest.
    """
    place = 1
    while place < beat_count - 1 and rng.random() < 0.3:
        place += 1
    return place


def _title(kind: str, name: str | None, other: str, rng: Random) -> str:
    hero = name if name and rng.random() < 0.5 else f"The {kind.title()}"
    return f"{hero} and the {other.title()}"
