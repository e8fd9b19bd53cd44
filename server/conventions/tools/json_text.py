"""JSON that comes in pieces: where a value ends, and the name and the arguments of a call."""

import json
from typing import Any, Literal

from ..parts import Arguments, Call, Part

_ARGUMENTS = ("arguments", "parameters")
_SPACE = " \t\r\n"
_LONGEST_KEY = 256
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

    def take(self, text: str, at: int) -> tuple[int, bool]:
        """Where the value ends or the text does, from `at` on, and whether the value has ended."""
        for place in range(at, len(text)):
            character = text[place]
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

    `state`: "wrong" where it is no such object. `known`: the name is known, and parts were given.
    """

    def __init__(self) -> None:
        self.state: State = "more"
        self.known = False
        self.taken = ""
        self._left = ""
        self._key: str | None = None
        self._value: JsonValue | None = None
        self._text = ""
        self._held: str | None = None
        self._found: list[Part] = []
        self._opened = self._had_arguments = False

    def push(self, text: str) -> tuple[list[Part], str]:
        """The parts that have become clear, and what is left behind the object."""
        self.taken += text
        self._left += text
        while self.state == "more" and self._step():
            pass
        found, self._found = self._found, []
        left = ""
        if self.state == "done":
            left, self._left = self._left, ""
        return found, left

    @property
    def unread(self) -> str:
        """Behind the place where it was found to be wrong."""
        return self._left

    def _step(self) -> bool:
        if self._value is not None:
            return self._read_value(self._value)
        self._left = self._left.lstrip(_SPACE)
        if not self._left:
            return False
        if self._key is not None:
            return self._colon()
        if not self._opened:
            self._opened = self._left[0] == "{"
            return self._go_on() if self._opened else self._fail()
        if self._left[0] == "}":
            return self._end()
        if self._left[0] == ",":
            return self._go_on()
        return self._read_key()

    def _read_key(self) -> bool:
        if self._left[0] != '"':
            return self._fail()
        end, ended = JsonValue().take(self._left, 0)
        if not ended:
            return self._fail() if end > _LONGEST_KEY else False
        self._key = _parsed(self._left[:end])
        self._left = self._left[end:]
        return True

    def _colon(self) -> bool:
        if self._left[0] != ":":
            return self._fail()
        self._value, self._text = JsonValue(), ""
        return self._go_on()

    def _read_value(self, value: JsonValue) -> bool:
        end, ended = value.take(self._left, 0)
        piece, self._left = self._left[:end], self._left[end:]
        self._text += piece
        if self._key in _ARGUMENTS and self.known and self._text.lstrip(_SPACE)[:1] == "{":
            self._had_arguments = True
            self._found.append(Arguments(piece if self._text != piece else piece.lstrip(_SPACE)))
        if ended:
            self._keep()
            self._key = self._value = None
        return ended

    def _keep(self) -> None:
        if self._key == "name":
            name = _parsed(self._text)
            if not isinstance(name, str) or not name or self.known:
                self.state = "wrong"
                return
            self.known = True
            self._found.append(Call(name))
            if self._held is not None:
                self._give(self._held)
        elif self._key in _ARGUMENTS:
            if not self.known:
                self._held = self._text
            elif not self._had_arguments:
                self._give(self._text)

    def _give(self, text: str) -> None:
        """Arguments in one piece; some models write the object as a string."""
        self._had_arguments = True
        parsed, text = _parsed(text), text.strip(_SPACE)
        text = parsed if isinstance(parsed, str) else text
        self._found.append(Arguments("{}" if text in ("", "null") else text))

    def _end(self) -> bool:
        self._left = self._left[1:]
        if not self.known:
            return self._fail()
        if not self._had_arguments:
            self._found.append(Arguments("{}"))
        self.state = "done"
        return False

    def _go_on(self) -> bool:
        self._left = self._left[1:]
        return True

    def _fail(self) -> bool:
        self.state = "wrong"
        return False


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
