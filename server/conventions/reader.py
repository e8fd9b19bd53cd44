"""Reads an answer's text as it comes, and tells what it consists of."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from .parts import Part, Said, joined

_PIECE = 1024
"""Longer texts are read in pieces: a step may copy all that is left."""


class Reader(ABC):
    """Splits one choice's text into parts. No text is lost: what is not a whole call is said.

    A subclass has steps: functions that take from `left` what they can use, put parts into `found`
    and return whether another step may follow at once. `ended`: no text follows.
    """

    def __init__(self) -> None:
        self.left = ""
        self.found: list[Part] = []
        self.ended = False

    def push(self, text: str) -> list[Part]:
        """The parts that have become clear with `text`."""
        for at in range(0, len(text) or 1, _PIECE):
            self.left += text[at : at + _PIECE]
            while self.step():
                pass
        found, self.found = self.found, []
        return joined(found)

    def finish(self) -> list[Part]:
        """The rest; no text follows."""
        self.ended = True
        return self.push("")

    @abstractmethod
    def step(self) -> bool:
        """Take one step; whether it changed anything."""

    def say_rest(self) -> bool:
        """Say all that is left, as a step."""
        self.found.append(Said(self.left))
        self.left = ""
        return False

    def before(self, marker: str) -> tuple[str, bool]:
        """Take the text before the marker, and whether the marker was there, which is taken too.

        What may be the beginning of the marker stays, unless the text has ended.
        """
        text, found, behind = self.left.partition(marker)
        if found:
            self.left = behind
            return text, True
        keep = 0 if self.ended else begun(self.left, (marker,))
        self.left = text[len(text) - keep :]
        return text[: len(text) - keep], False


class Edge:
    """The white space at the end of a text, which waits for what follows."""

    def __init__(self) -> None:
        self._space: list[str] = []

    def add(self, text: str) -> str:
        """The same with the white space before it, and without that at its end."""
        shown = text.rstrip()
        space = text[len(shown) :]
        if shown:
            shown = self.take() + shown
        if space:
            self._space.append(space)
        return shown

    def take(self) -> str:
        """What waits."""
        space = "".join(self._space)
        self._space.clear()
        return space


class PlainReader(Reader):
    """Every text is said."""

    def step(self) -> bool:
        """See `Reader`."""
        return self.say_rest()


class AnswerReader:
    """Reads thoughts, then what follows them."""

    def __init__(self, thoughts: Reader, calls: Reader) -> None:
        self._thoughts = thoughts
        self._calls = calls

    def push(self, text: str) -> list[Part]:
        """The parts that have become clear with `text`."""
        return self._pass_on(self._thoughts.push(text))

    def finish(self) -> list[Part]:
        """The rest; no text follows."""
        return joined([*self._pass_on(self._thoughts.finish()), *self._calls.finish()])

    def _pass_on(self, parts: Sequence[Part]) -> list[Part]:
        found: list[Part] = []
        for part in parts:
            found += self._calls.push(part.text) if isinstance(part, Said) else [part]
        return joined(found)


def begun(text: str, markers: Sequence[str]) -> int:
    """Length of the longest end of `text` that is a proper beginning of a marker."""
    longest = max(map(len, markers)) - 1
    for size in range(min(len(text), longest), 0, -1):
        end = text[-size:]
        for marker in markers:
            if marker.startswith(end) and len(marker) > size:
                return size
    return 0
