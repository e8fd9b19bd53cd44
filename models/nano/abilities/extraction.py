"""Extraction: the asked fields of a form, or of a sentence about a person, as JSON.

Held out by name and city, or by name and the first other value where there is no city.
"""

import json
from collections.abc import Callable, Mapping
from random import Random
from typing import Final

from ..stories.grammar import enumerated
from ..stories.words import COLOURS, FOODS, HE_NAMES, SHE_NAMES
from .example import Example, Split
from .materials import NAMES, draw_for, exact, made_up, made_up_name

_Value = str | int

_PROSE_SHARE: Final = 0.3
_NOISE_SHARE: Final = 0.3
_JOBS: Final = ("baker", "farmer", "sailor", "teacher", "doctor", "driver", "cook", "student")
_PETS: Final = ("cat", "dog", "rabbit", "mouse", "bird", "frog", "turtle", "horse", "hen", "none")
_REQUESTS: Final = (
    "Extract {fields} as JSON.",
    "Give me {fields} as JSON.",
    "Return JSON with {fields}.",
)
# About other people than the form's: only its lines say what is asked.
_NOISE: Final = (
    "{name} from {city} sent this form.",
    "{name} is {number} years old.",
    "The weather in {city} is fine today.",
    "There are {number} forms like this one.",
    "{name} likes {food}.",
)
_PROSE: Final = (
    "{name} is {age} years old and lives in {city}. {pronoun} likes {food}.",
    "{name} lives in {city} and likes {food}. {pronoun} is {age} years old.",
    "My name is {name}. I am {age} years old, I live in {city} and I like {food}.",
    "In {city} lives {name}, who is {age} years old and eats {food} every day.",
)


def _email(rng: Random) -> str:
    return f"{made_up(rng)}@{made_up(rng)}.com"


def _phone(rng: Random) -> str:
    return f"{rng.randrange(100, 1000)}-{rng.randrange(10000):04}"


def _date(rng: Random) -> str:
    return f"{rng.randint(1990, 2029)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def _age(rng: Random) -> int:
    return rng.randint(2, 99)


def _food(rng: Random) -> str:
    return rng.choice(FOODS)


def _name(rng: Random) -> str:
    return made_up_name(rng) if rng.random() < 0.4 else rng.choice(NAMES)


_FIELDS: Final[Mapping[str, Callable[[Random], _Value]]] = {
    "age": _age,
    "city": made_up_name,
    "colour": lambda rng: rng.choice(COLOURS),
    "food": _food,
    "pet": lambda rng: rng.choice(_PETS),
    "email": _email,
    "phone": _phone,
    "date": _date,
    "job": lambda rng: rng.choice(_JOBS),
    "points": lambda rng: rng.randrange(1000),
    "happy": lambda rng: rng.choice(("yes", "no")),
    "member": lambda rng: rng.choice(("yes", "no")),
}


def _form(rng: Random, split: Split) -> tuple[dict[str, _Value], str]:
    """Return the values and the text of a form of 3 to 8 lines."""
    fields = rng.sample(list(_FIELDS), rng.randint(2, 7))
    key = "city" if "city" in fields else fields[0]
    values = {field: _FIELDS[field](rng) for field in fields}

    def pair() -> tuple[str, str]:
        values[key] = _FIELDS[key](rng)
        return _name(rng), str(values[key])

    values["name"], _ = draw_for(split, "extraction", pair)
    order = list(values)
    order.insert(rng.randrange(len(order)), order.pop())
    text = "\n".join(f"{field.capitalize()}: {values[field]}" for field in order)
    if rng.random() < _NOISE_SHARE:
        others = [name for name in NAMES if name != values["name"]]
        noise = " ".join(
            sentence.format(
                name=rng.choice(others),
                city=made_up_name(rng),
                number=rng.randint(2, 99),
                food=_food(rng),
            )
            for sentence in rng.sample(_NOISE, rng.randint(1, 2))
        )
        text = f"{noise}\n{text}" if rng.random() < 0.5 else f"{text}\n{noise}"
    return values, text


def _prose(rng: Random, split: Split) -> tuple[dict[str, _Value], str]:
    """Return the values and the text of one or two sentences about a person."""
    name, city = draw_for(split, "extraction", lambda: (_name(rng), made_up_name(rng)))
    values: dict[str, _Value] = {"name": name, "age": _age(rng), "city": city, "food": _food(rng)}
    is_she = name in SHE_NAMES or (name not in HE_NAMES and rng.random() < 0.5)
    return values, rng.choice(_PROSE).format(pronoun="She" if is_she else "He", **values)


def example(rng: Random, split: Split) -> Example:
    """Return a request for 2 to 5 fields; the answer's keys are in the order asked."""
    tag, draw = ("prose", _prose) if rng.random() < _PROSE_SHARE else ("form", _form)
    values, text = draw(rng, split)
    asked = rng.sample(list(values), rng.randint(2, min(5, len(values))))
    request = rng.choice(_REQUESTS).format(fields=enumerated(asked))
    question = f"{request}\n{text}" if rng.random() < 0.5 else f"{text}\n{request}"
    return exact(question, json.dumps({field: values[field] for field in asked}), tag)
