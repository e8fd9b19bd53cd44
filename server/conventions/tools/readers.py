"""What the readers of calls share, and the two usual shapes: a JSON object, and a name and JSON."""

import re
from collections.abc import Callable, Sequence
from typing import Final

from ..parts import Arguments, Call, Said
from ..reader import Edge, Reader, begun
from .json_text import JsonCall, JsonValue

NAME: Final = "[A-Za-z0-9_.:-]{1,128}"
"""Names of tools, as a regular expression."""
LONGEST_HEAD: Final = 512
"""Most characters before the arguments of a call."""


class CallReader(Reader):
    """Base of the readers: white space beside calls is markup.

    `taken`: what may be markup, and is text if it turns out to be none.
    """

    def __init__(self, first: Callable[[], bool]) -> None:
        super().__init__()
        self.called = False
        self.taken: list[str] = []
        self._edge = Edge()
        self._step = first

    def step(self) -> bool:
        """See `Reader`."""
        return self._step()

    def say(self, text: str) -> None:
        """Say text; white space at its end waits for what follows."""
        shown = self._edge.add(text)
        if self.ended and not self.called:
            shown += self._edge.take()
        if shown:
            self.found.append(Said(shown))

    def begin_call(self, name: str, own_id: str | None = None) -> None:
        """A call begins; what was taken is its markup."""
        self.called = True
        self._edge.take()
        self.taken.clear()
        self.found.append(Call(name, own_id))

    def give_up(self, separator: str = "") -> None:
        """What was taken is text; white space is not, nor is a separator at the end of all."""
        text = "".join(self.taken)
        self.taken.clear()
        cut_off = self.ended and self.called and not self.left
        if not cut_off or text.strip() != separator:
            self.say(text)

    def take(self, size: int) -> None:
        """Take the first characters of what is left."""
        if size:
            self.taken.append(self.left[:size])
            self.left = self.left[size:]

    def skip(self, marker: str) -> bool | None:
        """Take white space, and the marker if it is there; None: that is not known yet.

        A marker that the end of the text cuts off is there.
        """
        self.take(len(self.left) - len(self.left.lstrip()))
        cut_off = self.ended and marker.startswith(self.left)
        if cut_off or self.left.startswith(marker):
            self.take(len(marker))
            return True
        return None if marker.startswith(self.left) else False

    def say_before(self, *markers: str) -> str | None:
        """Say the text before the first of the markers, which is taken; None: there is none yet."""
        there = [(self.left.index(marker), marker) for marker in markers if marker in self.left]
        if there:
            at, marker = min(there)
            self.say(self.left[:at])
            self.left = self.left[at:]
            self.take(len(marker))
            return marker
        keep = 0 if self.ended else begun(self.left, markers)
        self.say(self.left[: len(self.left) - keep])
        self.left = self.left[len(self.left) - keep :]
        return None

    def only_text(self) -> bool:
        """The rest is text, as a step."""
        self.say(self.left)
        self.left = ""
        return False


class JsonCallReader(CallReader):
    """Calls as JSON objects. `begin`, `opening`: before the first; `end`: behind the last;
    `between`: several objects may stand between the two. With an empty `begin` the whole answer is
    calls, or none. `accepts`: whether it is a name of a tool; other objects are text.
    """

    def __init__(
        self,
        begin: str,
        end: str,
        *,
        accepts: Callable[[str], bool],
        opening: str = "",
        between: str = "",
    ) -> None:
        super().__init__(self._outside if begin else self._object)
        self._begin, self._opening, self._end, self._between = begin, opening, end, between
        self._accepts = accepts
        self._call = JsonCall(accepts)

    def _outside(self) -> bool:
        if self.say_before(self._begin) is None:
            return False
        self._step = self._open
        return True

    def _open(self) -> bool:
        found = self.skip(self._opening)
        if found is not None:
            self._step = self._object if found else self._is_text
        return found is not None

    def _object(self) -> bool:
        call, text, self.left = self._call, self.left, ""
        if not call.known:
            self.taken.append(text)
        for part in call.push(text):
            if isinstance(part, Call):
                self.begin_call(part.name)
            else:
                self.found.append(part)
        if call.state == "more":
            if not self.ended:
                return False
            if call.known:
                self.found += call.finish()
            else:
                self._step = self._is_text
            return not call.known
        self.left = call.left
        if call.known:
            # What is wrong behind the name stays with the call.
            self._step = self._behind if call.state == "done" else self._broken
        else:
            whole = "".join(self.taken)
            self.taken = [whole[: len(whole) - len(self.left)]]
            self._step = self._is_text
        return True

    def _is_text(self) -> bool:
        """It is no call."""
        self.give_up(self._between)
        self._call = JsonCall(self._accepts)
        self._step = self._outside if self._begin else self.only_text
        return True

    def _broken(self) -> bool:
        text, closed = self.before(self._end) if self._end else (self.left, False)
        self.left = self.left if self._end else ""
        self.found.append(Arguments(text))
        if closed:
            self._call = JsonCall(self._accepts)
            self._step = self._outside
        return closed

    def _behind(self) -> bool:
        """Behind a whole object: another one, the end, or text."""
        again = self.skip(self._between) if self._between else False
        closed = self.skip(self._end) if self._end and again is False else False
        if again is None or closed is None:
            return False
        self._call = JsonCall(self._accepts)
        if again:
            self._step = self._object
            return True
        if closed:
            self.taken.clear()
        self.give_up()
        self._step = self._outside if self._begin else self._more
        return True

    def _more(self) -> bool:
        """Without markers: another object on a new line, or text."""
        self.skip("")
        if not self.left:
            return False
        self._step = self._object if self.left[0] == "{" else self._is_text
        return True


class NamedCallReader(CallReader):
    """Calls as `begin`, a head, a JSON object, and `ends`, each of which may be missing.

    `head`: its first group is the name; its group `id`, if it has one, the call's id. `outer`: what
    stands before and behind all calls.
    """

    def __init__(
        self, begin: str, head: re.Pattern[str], ends: Sequence[str], outer: Sequence[str] = ()
    ) -> None:
        super().__init__(self._outside)
        self._begin, self._head, self._outer = begin, head, outer
        self._ends = (*ends, *outer[1:])
        self._missing = self._ends
        self._value = JsonValue()

    def _outside(self) -> bool:
        found = self.say_before(self._begin, *self._outer[:1])
        if found is not None:
            self._step = self._name if found == self._begin else self._open
        return found is not None

    def _open(self) -> bool:
        found = self.skip(self._begin)
        if found is not None:
            self._step = self._name if found else self._is_text
        return found is not None

    def _name(self) -> bool:
        end = self.left.find("{", 0, LONGEST_HEAD)
        if end < 0 and len(self.left) < LONGEST_HEAD and not self.ended:
            return False
        head = self._head.fullmatch(self.left, 0, max(end, 0))
        if head is None:
            self._step = self._is_text
            return True
        self.begin_call(head[1], head.groupdict().get("id"))
        self.left = self.left[end:]
        self._value, self._step = JsonValue(), self._json
        return True

    def _is_text(self) -> bool:
        """It is no call."""
        self.give_up()
        self._step = self._outside
        return True

    def _json(self) -> bool:
        end, done = self._value.take(self.left)
        self.found.append(Arguments(self.left[:end]))
        self.left = self.left[end:]
        if done:
            self._missing, self._step = self._ends, self._behind
        return done

    def _behind(self) -> bool:
        while self._missing:
            found = self.skip(self._missing[0])
            if found is None:
                return False
            if found:
                self.taken.clear()
            self._missing = self._missing[1:]
        self._step = self._is_text
        return True
