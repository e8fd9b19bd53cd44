"""JSON that comes in pieces: where a value ends, and the name and the arguments of a call."""

import json
from collections.abc import Callable
from typing import Any, Literal

from ..parts import Arguments, Call, Part

_ARGUMENTS = ("arguments", "parameters")
_SPACE = " \t\r\n"
_LONGEST_KEY = 256
_LONGEST_ESCAPE = 12
State = Literal["more", "done", "wrong"]


class JsonValue:
    """Finds the end of one JSON value. It is not checked: models may write it wrongly.

    `brackets`, `quotes`: other ones, for texts that are like JSON.
    """

    def __init__(self, brackets: tuple[str, str] = ("{[", "}]"), quotes: str = '"') -> None:
        self._opening, self._closing = brackets
        self._quotes = quotes
        self._quote = ""
        self._open = 0
        self._kind = ""
        self._escaped = False

    def take(self, text: str) -> tuple[int, bool]:
        """Where in the further text the value ends, or the text, and whether the value does."""
        for place, character in enumerate(text):
            if self._quote:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == self._quote:
                    self._quote = ""
                    if not self._open:
                        return place + 1, True
            elif not self._kind and character in _SPACE:
                continue
            elif character in self._quotes:
                self._quote = character
            elif character in self._opening:
                self._open += 1
            elif character in self._closing:
                if not self._open:
                    return place, True
                self._open -= 1
                if not self._open:
                    return place + 1, True
            elif not self._open and (character in _SPACE or character == ","):
                return place, True
            self._kind = self._kind or character
        return len(text), False


class JsonCall:
    """Reads `{"name": ..., "arguments": {...}}`, in any order of its keys.

    `accepts`: whether it is a name of a tool. `state`: "wrong" where it is no such object. `known`:
    the name is known, and parts were given. `left`: what has not been read; behind the object, or
    behind the place where it was found to be wrong.
    """

    def __init__(self, accepts: Callable[[str], bool]) -> None:
        self.state: State = "more"
        self.known = False
        self.left = ""
        self._accepts = accepts
        self._next = self._begin
        self._key: str | None = None
        self._value = JsonValue()
        self._read: list[str] = []
        self._size = 0
        self._streams = self._had_arguments = False
        self._held: str | None = None
        self._found: list[Part] = []

    def push(self, text: str) -> list[Part]:
        """The parts that have become clear."""
        self.left += text
        while self.state == "more" and self._next():
            pass
        found, self._found = self._found, []
        return found

    def finish(self) -> list[Part]:
        """What has come of arguments that are given in one piece; no text follows."""
        text = "".join(self._read)
        if not self.known or self._key not in _ARGUMENTS or self._had_arguments:
            return []
        if text.startswith('"'):
            ends = (_parsed(text[: len(text) - cut] + '"') for cut in range(_LONGEST_ESCAPE))
            text = next((end for end in ends if isinstance(end, str)), text)
        return [] if "null".startswith(text) else [Arguments(text)]

    def _begin(self) -> bool:
        if self._character() == "{":
            return self._go_on(self._between)
        return self._fail()

    def _between(self) -> bool:
        """Before a key, or the end."""
        character = self._character()
        if character == "}":
            return self._end()
        if character == ",":
            return self._go_on(self._between)
        if character == '"':
            return self._expect(self._in_key)
        return self._fail()

    def _in_key(self) -> bool:
        end, ended = self._value.take(self.left[: _LONGEST_KEY - self._size])
        self._take(end)
        if ended:
            self._key = _parsed("".join(self._read))
            self._read.clear()
            self._next = self._colon
        elif self._size == _LONGEST_KEY:
            self.state = "wrong"
        return ended

    def _colon(self) -> bool:
        if self._character() == ":" and self._key is not None:
            return self._go_on(self._before_value)
        return self._fail()

    def _before_value(self) -> bool:
        """Arguments are told as they come, once the name is known."""
        character = self._character()
        self._streams = (
            character == "{" and self.known and self._key in _ARGUMENTS and not self._had_arguments
        )
        self._had_arguments = self._had_arguments or self._streams
        return bool(character) and self._expect(self._in_value)

    def _in_value(self) -> bool:
        end, ended = self._value.take(self.left)
        if self._streams:
            self._found.append(Arguments(self.left[:end]))
            self.left = self.left[end:]
        else:
            self._take(end)
        if ended:
            self._next = self._between
            if not self._streams:
                self._keep("".join(self._read))
            self._key = None
        return ended

    def _keep(self, text: str) -> None:
        if self._key == "name":
            name = _parsed(text)
            if self.known or not isinstance(name, str) or not self._accepts(name):
                self.state = "wrong"
                return
            self.known = True
            self._found.append(Call(name))
            if self._held is not None:
                self._give(self._held)
        elif self._key in _ARGUMENTS and not self._had_arguments:
            if self.known:
                self._give(text)
            elif self._held is None:
                self._held = text

    def _give(self, text: str) -> None:
        """Arguments in one piece; some models write the object as a string."""
        self._had_arguments = True
        parsed = _parsed(text) if text.startswith('"') else None
        text = parsed if isinstance(parsed, str) else text
        self._found.append(Arguments("{}" if text in ("", "null") else text))

    def _end(self) -> bool:
        if not self.known:
            return self._fail()
        self.left = self.left[1:]
        if not self._had_arguments:
            self._found.append(Arguments("{}"))
        self.state = "done"
        return False

    def _character(self) -> str:
        """The next one that is not white space."""
        self.left = self.left.lstrip(_SPACE)
        return self.left[:1]

    def _go_on(self, to: Callable[[], bool]) -> bool:
        """Take a character."""
        self.left, self._next = self.left[1:], to
        return True

    def _expect(self, value: Callable[[], bool]) -> bool:
        """Begin to read a key or a value."""
        self._value, self._next, self._size = JsonValue(), value, 0
        self._read.clear()
        return True

    def _take(self, size: int) -> None:
        self._read.append(self.left[:size])
        self._size += size
        self.left = self.left[size:]

    def _fail(self) -> bool:
        """It is wrong, if there is anything."""
        self.state = "wrong" if self.left else self.state
        return False


def _parsed(text: str) -> Any:
    """The value; None: it is wrong, or text that cannot be encoded."""
    try:
        value = json.loads(text)
        if isinstance(value, str):
            value.encode()
    except (ValueError, RecursionError):
        return None
    return value
