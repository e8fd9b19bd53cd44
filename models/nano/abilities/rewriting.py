"""Rewriting: a few lines of Python changed as told.

Held out by the old and the new name of a renaming, by the first two names of a list of fields, or
by a function and its first argument.
"""

import builtins
import keyword
from random import Random
from typing import Final

from .example import Example, Split
from .materials import WORDS, draw_for, exact, made_up

_ABILITY: Final = "rewriting"
_SHORTEST, _LONGEST = 3, 8
_WORDS: Final = tuple(
    word
    for word in WORDS
    if word.isidentifier()
    and word.islower()
    and len(word) <= 9
    and not keyword.iskeyword(word)
    and not keyword.issoftkeyword(word)
    and not hasattr(builtins, word)
)
_LETTERS: Final = tuple("abcdefghijkmnpqrstuvwxyz")
_STATEMENTS: Final = (
    "{a} = {n}",
    "{a} += {b}",
    "{a} = {b} + {n}",
    "{a} = {b} * {c}",
    "{a} = [{b}, {c}, {n}]",
    "{a} = max({b}, {n})",
    "{a} = str({b})",
    "print({a})",
    "print({a}, {b})",
    "if {a} > {b}:\n    {a} = {c} - {n}",
    "for {a} in range({b}):\n    print({a} + {c})",
    "while {a} < {n}:\n    {a} += 1",
)
_VALUES: Final = ("number", "number", "word", "truth")


def _identifier(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.2:
        return rng.choice(_LETTERS)
    if kind < 0.7:
        return rng.choice(_WORDS)
    if kind < 0.85:
        return f"{rng.choice(_WORDS)}_{rng.choice(_WORDS)}"
    return made_up(rng)


def _identifiers(rng: Random, split: Split, how_many: int) -> list[str]:
    """Return distinct names, the first two of them a combination of `split`."""
    while True:
        first = draw_for(split, _ABILITY, lambda: (_identifier(rng), _identifier(rng)))
        names = dict.fromkeys((*first, *(_identifier(rng) for _ in range(how_many - 2))))
        if len(names) == how_many:
            return list(names)


def _placed(rng: Random, request: str, code: str) -> str:
    return f"{request}\n{code}" if rng.random() < 0.5 else f"{code}\n\n{request}"


def _body(rng: Random, line_count: int) -> str:
    """Return statements about the fields {0}, {1} and {2}, in `line_count` lines or one more."""
    lines: list[str] = []
    while len(lines) < line_count:
        a, b, c = rng.sample(("{0}", "{1}", "{2}"), 3)
        statement = rng.choice(_STATEMENTS).format(a=a, b=b, c=c, n=rng.randrange(100))
        lines += statement.split("\n")
    return "\n".join(lines)


def _rename(rng: Random, split: Split) -> tuple[str, str]:
    old, new, other, third, function = _identifiers(rng, split, 5)
    # A name inside another one has to stay.
    if rng.random() < 0.25 and new != f"{old}_{other}":
        third = f"{old}_{other}"
    code = ""
    while code.count("{0}") < 2:
        if rng.random() < 0.4:
            body = _body(rng, rng.randint(_SHORTEST - 2, _LONGEST - 3)).replace("\n", "\n    ")
            code = f"def {function}({{0}}, {{1}}, {{2}}):\n    {body}\n    return {{0}}"
        else:
            code = _body(rng, rng.randint(_SHORTEST, _LONGEST - 1))
    variable = rng.choice(("", "the variable "))
    question = _placed(rng, f"Rename {variable}{old} to {new}.", code.format(old, other, third))
    return question, code.format(new, other, third)


def _value(rng: Random) -> str:
    match rng.choice(_VALUES):
        case "number":
            return str(rng.randrange(1000))
        case "word":
            return f'"{rng.choice((rng.choice(WORDS), made_up(rng)))}"'
        case _:
            return rng.choice(("True", "False"))


def _dict(rng: Random, split: Split) -> tuple[str, str]:
    names = _identifiers(rng, split, rng.randint(_SHORTEST, _LONGEST))
    pairs = [(name, _value(rng)) for name in names]
    code = "\n".join(f"{name} = {value}" for name, value in pairs)
    request = rng.choice(("Turn these assignments into a dict.", "Write this code as a dict."))
    entries = ", ".join(f'"{name}": {value}' for name, value in pairs)
    return _placed(rng, request, code), f"{{{entries}}}"


def _getters(rng: Random, split: Split) -> tuple[str, str]:
    names = _identifiers(rng, split, rng.randint(2, 5))
    request = rng.choice(("Write getters for these fields:", "Write a getter for each field:"))
    getters = (f"def get_{name}(self):\n    return self.{name}" for name in names)
    return f"{request} {', '.join(names)}", "\n\n".join(getters)


def _swap(rng: Random, split: Split) -> tuple[str, str]:
    function, *names = _identifiers(rng, split, 4)
    before: list[str] = []
    after: list[str] = []
    for number in range(rng.randint(_SHORTEST, 6)):
        result = rng.choice(_LETTERS)
        one = names[0] if number == 0 else rng.choice(names)
        two = rng.choice((*names, str(rng.randrange(100))))
        before.append(f"{result} = {function}({one}, {two})")
        after.append(f"{result} = {function}({two}, {one})")
    request = f"Swap the two arguments in each call of {function}."
    return _placed(rng, request, "\n".join(before)), "\n".join(after)


_TASKS: Final = {"rename": _rename, "dict": _dict, "getters": _getters, "swap": _swap}
_WEIGHTS: Final = (45, 20, 20, 15)


def example(rng: Random, split: Split) -> Example:
    """Return an instruction about 3 to 8 lines of code; the answer is the new code alone."""
    (kind,) = rng.choices(tuple(_TASKS), _WEIGHTS)
    question, answer = _TASKS[kind](rng, split)
    return exact(question, answer, kind)
