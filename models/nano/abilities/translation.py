"""Translation from and to Talu, a language that exists here only.

The grammar of Talu (its words are in `LEXICON`; names of people stay as they are):
- Subject, place, object, verb; "in", "near" and "behind" follow their place:
  "The fox finds a key in the garden." is "dira-ra vulu-ra lu deno tapek."
- Nouns end in a vowel, adjectives in -in, verbs in -ek; verbs never change. Only names have a
  capital letter.
- Adjectives and numbers follow the noun, in the order of English and the number last.
- "-ni" makes a noun plural and "-ra" after it is "the"; there is no word for "a".
- "mek" before the verb is "not", "dol" after it puts the sentence into the past.

Held out by subject, verb and object, in both directions and in every form.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from .example import Example, Split
from .materials import NAMES, draw_for, exact

_SHORTEST_WORDS, _LONGEST_WORDS = 5, 14
_PLURAL, _DEFINITE, _NOT, _PAST = "-ni", "-ra", "mek", "dol"


def _table(text: str) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in text.split())


_CREATURES: Final = _table(
    "cat=lemu dog=bazu fox=dira rabbit=peba bear=moda mouse=duma owl=zuda frog=subu duck=roba "
    "squirrel=buza turtle=kofu horse=duku pig=zedu cow=rela goat=para lion=renu tiger=povo "
    "elephant=nuno monkey=keva penguin=tedu dragon=kuno bird=toku bee=dapo ant=fifo crow=masa "
    "wolf=vuro camel=liro zebra=roda otter=kotu snail=datu spider=kuso king=koso queen=bola "
    "witch=rana robot=gifu girl=gomo"
)
_THINGS: Final = _table(
    "key=deno ball=pifo hat=zuku kite=miso drum=geda lamp=fesa book=bozu ring=fika bell=fopo "
    "cup=rula spoon=turu map=sanu coin=vumo basket=modo boat=soba whistle=dena mirror=dara "
    "shell=palu stone=baza feather=rofu button=kiro crown=nado box=nono bottle=dedu flag=linu "
    "candle=fuba bag=pifu egg=pavu clock=kato rope=vepu"
)
_PLACES: Final = _table(
    "garden=vulu house=guva forest=vezo barn=tegu village=nita kitchen=bino tower=gulo mill=vila"
)
_QUALITIES: Final = _table(
    "big=gagin small=nelin old=gorin new=ranin good=sivin bad=sazin clean=samin heavy=venin "
    "strange=fovin pretty=sidin"
)
_COLOURS: Final = _table(
    "red=vonin blue=matin green=fefin yellow=berin white=nerin black=zunin brown=sifin golden=pufin"
)
_VERBS: Final = _table(
    "see=bavek find=tapek like=temek take=zezek want=zebek carry=kekek hide=pevek hold=rikek "
    "bring=pozek draw=fatek lose=losek buy=rumek paint=zufek push=pepek follow=pazek love=nerek"
)
_NUMBERS: Final = _table("one=pim two=dak three=sol four=ret five=gon")
_PLACERS: Final = _table("in=lu near=po behind=ka")
_PRONOUNS: Final = _table("he=fe she=sha we=wo they=tho")
LEXICON: Final[Mapping[str, str]] = {
    **_CREATURES,
    **_THINGS,
    **_PLACES,
    **_QUALITIES,
    **_COLOURS,
    **_VERBS,
    **_NUMBERS,
    **_PLACERS,
    **_PRONOUNS,
    "not": _NOT,
}
_PAST_FORMS: Final = _table(
    "see=saw find=found take=took carry=carried hide=hid hold=held bring=brought draw=drew "
    "lose=lost buy=bought"
)
_THIRD_PERSONS: Final = _table("carry=carries push=pushes")
_PLURALS: Final = _table("mouse=mice wolf=wolves fox=foxes box=boxes witch=witches")
_DETERMINERS: Final = ("the", "a", "", *_NUMBERS)
_DETERMINER_WEIGHTS: Final = (50, 25, 10, 3, 3, 3, 3, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class _NounPhrase:
    """A name or pronoun stands alone; a bare plural has the determiner ""."""

    head: str
    determiner: str = ""
    plural: bool = False
    adjectives: tuple[str, ...] = ()

    @property
    def is_noun(self) -> bool:
        return self.head in _CREATURES or self.head in _THINGS or self.head in _PLACES

    def english(self) -> list[str]:
        noun = _PLURALS.get(self.head, f"{self.head}s") if self.plural and self.is_noun else None
        words = [*self.adjectives, noun or self.head]
        if self.determiner == "a" and words[0][0] in "aeio":
            return ["an", *words]
        return [self.determiner, *words] if self.determiner else words

    def talu(self) -> list[str]:
        if not self.is_noun:
            return [LEXICON.get(self.head, self.head)]
        ends = _PLURAL * self.plural + _DEFINITE * (self.determiner == "the")
        words = [LEXICON[self.head] + ends, *(LEXICON[word] for word in self.adjectives)]
        return [*words, _NUMBERS[self.determiner]] if self.determiner in _NUMBERS else words


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sentence:
    subject: _NounPhrase
    verb: str
    object: _NounPhrase
    place: tuple[str, _NounPhrase] | None
    is_past: bool
    is_negative: bool

    def _verb(self) -> list[str]:
        if self.is_negative:
            do = "did" if self.is_past else "do" if self.subject.plural else "does"
            return [do, "not", self.verb]
        if self.is_past:
            return [_PAST_FORMS.get(self.verb, f"{self.verb.removesuffix('e')}ed")]
        if self.subject.plural:
            return [self.verb]
        return [_THIRD_PERSONS.get(self.verb, f"{self.verb}s")]

    def english(self) -> list[str]:
        words = [*self.subject.english(), *self._verb(), *self.object.english()]
        if self.place:
            words += [self.place[0], *self.place[1].english()]
        return [words[0][0].upper() + words[0][1:], *words[1:]]

    def talu(self) -> list[str]:
        place = [*self.place[1].talu(), LEXICON[self.place[0]]] if self.place else []
        verb = [_NOT] * self.is_negative + [LEXICON[self.verb]] + [_PAST] * self.is_past
        return [*self.subject.talu(), *place, *self.object.talu(), *verb]


_SUBJECTS: Final = tuple(_CREATURES)
_OBJECTS: Final = (*_CREATURES, *_THINGS)


def _triple(rng: Random) -> tuple[str, str, str]:
    kind = rng.random()
    subjects = _SUBJECTS if kind < 0.7 else NAMES if kind < 0.85 else tuple(_PRONOUNS)
    objects = _OBJECTS if rng.random() < 0.9 else NAMES
    return rng.choice(subjects), rng.choice(tuple(_VERBS)), rng.choice(objects)


def _phrase(rng: Random, head: str) -> _NounPhrase:
    if head not in _CREATURES and head not in _THINGS:
        return _NounPhrase(head=head, plural=head in ("we", "they"))
    (determiner,) = rng.choices(_DETERMINERS, _DETERMINER_WEIGHTS)
    plural = determiner not in ("a", "one") and (determiner != "the" or rng.random() < 0.25)
    quality = (rng.choice(tuple(_QUALITIES)),) if rng.random() < 0.4 else ()
    colour = (rng.choice(tuple(_COLOURS)),) if rng.random() < 0.25 else ()
    return _NounPhrase(head=head, determiner=determiner, plural=plural, adjectives=quality + colour)


def _sentence(rng: Random, split: Split) -> _Sentence:
    subject, verb, object_ = draw_for(split, "translation", lambda: _triple(rng))
    while True:
        place = _NounPhrase(head=rng.choice(tuple(_PLACES)), determiner="the")
        sentence = _Sentence(
            subject=_phrase(rng, subject),
            verb=verb,
            object=_phrase(rng, object_),
            place=(rng.choice(tuple(_PLACERS)), place) if rng.random() < 0.4 else None,
            is_past=rng.random() < 0.4,
            is_negative=rng.random() < 0.2,
        )
        if _SHORTEST_WORDS <= len(sentence.english()) <= _LONGEST_WORDS:
            return sentence


def example(rng: Random, split: Split) -> Example:
    """Return a request to translate one to three sentences, three in ten of them into English."""
    (count,) = rng.choices((1, 2, 3), (50, 30, 20))
    sentences = [_sentence(rng, split) for _ in range(count)]
    english = " ".join(" ".join(sentence.english()) + "." for sentence in sentences)
    talu = " ".join(" ".join(sentence.talu()) + "." for sentence in sentences)
    if rng.random() < 0.3:
        return exact(f"Translate to English: {talu}", english, "to English")
    return exact(f"Translate to Talu: {english}", talu, "to Talu")
