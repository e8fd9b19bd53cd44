"""What an answer consists of: thoughts, text, and calls of tools."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Said:
    """Text of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool begins; its arguments follow. `id`: the model's own; None: it gave none."""

    name: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Arguments:
    """Part of the JSON of the newest call's arguments."""

    text: str


Part = Thought | Said | Call | Arguments


def joined(parts: Iterable[Part]) -> list[Part]:
    """The same with neighbouring texts of one kind in one part, and without empty ones."""
    kept: list[Part] = []
    for part in parts:
        if isinstance(part, Call):
            kept.append(part)
        elif part.text:
            if kept and type(kept[-1]) is type(part):
                last = kept.pop()
                assert not isinstance(last, Call)
                part = type(part)(last.text + part.text)
            kept.append(part)
    return kept
