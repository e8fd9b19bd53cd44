"""What the readers of calls share, and the two usual shapes: a JSON object, and a name and JSON."""

from collections.abc import Callable

from ..parts import Arguments, Call, Said
from ..reader import Reader, begun
from .json_text import JsonCall, JsonValue


class CallReader(Reader):
    """Base of the readers: white space beside calls is markup."""

    def __init__(self) -> None:
        super().__init__()
        self.called = False
        self._space = ""

    def say(self, text: str) -> None:
        """Say text; white space at its end waits for what follows."""
        text = self._space + text
        if self.called and not text.strip():
            text = text if not self.ended else ""
        shown = text if self.ended and not self.called else text.rstrip()
        self._space = text[len(shown) :]
        self.found.append(Said(shown))

    def begin_call(self, name: str) -> None:
        """A call begins."""
        self.called, self._space = True, ""
        self.found.append(Call(name))

    def say_before(self, *markers: str) -> str | None:
        """Say the text before the first of the markers, which is taken; None: there is none yet."""
        places = [(self.left.find(marker), marker) for marker in markers]
        there = [(at, -len(marker), marker) for at, marker in places if at >= 0]
        if there:
            at, _, marker = min(there)
            self.say(self.left[:at])
            self.left = self.left[at + len(marker) :]
            return marker
        keep = 0 if self.ended else begun(self.left, markers)
        self.say(self.left[: len(self.left) - keep])
        self.left = self.left[len(self.left) - keep :]
        return None

    def skip(self, marker: str) -> bool | None:
        """Take white space and the marker, if it is there; None: that is not known yet."""
        text = self.left.lstrip()
        if text.startswith(marker):
            self.left = text[len(marker) :]
            return True
        if marker.startswith(text) and not self.ended:
            return None
        return False


class JsonCallReader(CallReader):
    """Calls as JSON objects. `begin`: before the first; `end`: behind the last; `between`: several
    objects may stand between the two. With an empty `begin` the whole answer is calls, or none.
    `accepts`: whether it is a name of a tool; other objects are text.
    """

    def __init__(
        self, begin: str, end: str, *, between: str, accepts: Callable[[str], bool]
    ) -> None:
        super().__init__()
        self._begin, self._end, self._between = begin, end, between
        self._accepts = accepts
        self._call = JsonCall()
        self._raw = ""
        self._step = self._outside if begin else self._object

    def step(self) -> bool:
        """See `Reader`."""
        return self._step()

    def _outside(self) -> bool:
        if self.say_before(self._begin) is None:
            return False
        self._raw, self._call = self._begin, JsonCall()
        self._step = self._object
        return True

    def _object(self) -> bool:
        if not self.left and not self.ended:
            return False
        text, self.left = self.left, ""
        parts, behind = self._call.push(text)
        for part in parts:
            if isinstance(part, Call):
                if not self._accepts(part.name):
                    return self._give_up()
                self.begin_call(part.name)
            else:
                self.found.append(part)
        if self._call.state == "more":
            if self.ended and not self._call.known:
                return self._give_up()
            return False
        if self._call.state == "wrong":
            if not self._call.known:
                return self._give_up()
            # The name has been told: what was not JSON stays with the call.
            self.left = self._call.unread
            self._step = self._broken
            return True
        self.left = behind
        self._raw = ""
        self._step = self._behind
        return True

    def _give_up(self) -> bool:
        """It is no call: what was taken of it is text."""
        self.left = self._call.taken
        self.say(self._raw)
        self._raw, self._call = "", JsonCall()
        self._step = self._outside if self._begin else self._only_text
        return bool(self.left)

    def _only_text(self) -> bool:
        self.say(self.left)
        self.left = ""
        return False

    def _broken(self) -> bool:
        text, closed = self.before(self._end) if self._end else (self.left, False)
        self.left = self.left if self._end else ""
        self.found.append(Arguments(text))
        if closed:
            self._step = self._outside
        return closed

    def _behind(self) -> bool:
        """Behind a whole object: another one, the end, or text."""
        if self._between:
            again = self.skip(self._between)
            if again is None:
                return False
            if again:
                self._call = JsonCall()
                self._step = self._object
                return True
        closed = self.skip(self._end) if self._end else False
        if closed is None:
            return False
        self._step = self._outside if self._begin else self._more
        return True

    def _more(self) -> bool:
        """Without markers: another object on a new line, or text."""
        text = self.left.lstrip()
        if not text and not self.ended:
            return False
        if text.startswith("{"):
            self._raw, self._call = self.left[: len(self.left) - len(text)], JsonCall()
            self.left, self._step = text, self._object
            return True
        self._step = self._only_text
        return bool(text)


class NamedCallReader(CallReader):
    """Calls as `begin` name `middle` JSON `end`. `outer`: markup around all calls."""

    def __init__(self, begin: str, middle: str, end: str, *, outer: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._begin, self._middle, self._end = begin, middle, end
        self._outer = outer
        self._value = JsonValue()
        self._step = self._outside

    def step(self) -> bool:
        """See `Reader`."""
        return self._step()

    def read_name(self) -> str | None:
        """Take the name and what separates it from the JSON; None: not all of it is there."""
        name, found, behind = self.left.partition(self._middle)
        if not found:
            return None
        self.left = behind
        return name

    def skip_end(self) -> bool:
        """Take what stands behind the JSON; whether that is known yet."""
        return not self._end or self.skip(self._end) is not None

    def _outside(self) -> bool:
        found = self.say_before(self._begin, *self._outer)
        if found == self._begin:
            self._step = self._name
        return found is not None

    def _name(self) -> bool:
        name = self.read_name()
        if name is not None:
            self.begin_call(name.strip())
            self._value, self._step = JsonValue(), self._gap
        elif self.ended:
            self.say(self._begin + self.left)
            self.left = ""
        return name is not None

    def _gap(self) -> bool:
        self.left = self.left.lstrip()
        self._step = self._json if self.left else self._step
        return bool(self.left)

    def _json(self) -> bool:
        end, done = self._value.take(self.left, 0)
        self.found.append(Arguments(self.left[:end]))
        self.left = self.left[end:]
        if done:
            self._step = self._behind
        return done

    def _behind(self) -> bool:
        known = self.skip_end()
        if known:
            self._step = self._outside
        return known
