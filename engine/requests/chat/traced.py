"""Strings that know which of their characters a caller wrote (taint tracking).

A template works on them as on any string: the characters are unchanged, so that comparing,
splitting, trimming and counting give the usual results. Strings made from them keep the marks.
Where an operation cannot tell who wrote which characters of its result, all of them count as the
caller's: the template's markup may then become text, but text never becomes markup.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Self, SupportsIndex, cast

Spans = tuple[tuple[int, int], ...]


class Traced(str):
    """A string whose characters in `said`, ascending (start, end), are a caller's."""

    __slots__ = ("said",)

    said: Spans

    def __new__(cls, text: str, said: Spans) -> Self:
        """`said` must lie within the text."""
        made = super().__new__(cls, text)
        made.said = said
        return made

    def __str__(self) -> str:
        return self

    def __add__(self, other: Any, /) -> str:
        return concatenate((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any, /) -> str:
        return concatenate((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex, /) -> str:
        return all_said(str.__mul__(self, times))

    def __rmul__(self, times: SupportsIndex, /) -> str:
        return all_said(str.__mul__(self, times))

    def __mod__(self, values: Any, /) -> str:
        return all_said(str.__mod__(self, values))

    def __rmod__(self, form: str, /) -> str:
        return all_said(str.__mod__(form, self))

    def __getitem__(self, at: SupportsIndex | slice, /) -> str:
        if isinstance(at, slice):
            start, stop, step = at.indices(len(self))
            return self._cut(start, stop) if step == 1 else all_said(str.__getitem__(self, at))
        position = at.__index__()
        str.__getitem__(self, position)  # raises IndexError where there is none
        position += len(self) if position < 0 else 0
        return self._cut(position, position + 1)

    def __iter__(self) -> Iterator[str]:
        return (self._cut(at, at + 1) for at in range(len(self)))

    def join(self, pieces: Iterable[Any], /) -> str:
        """Keeps exact marks, as do the methods below that refer here."""
        between: list[str] = []
        for piece in pieces:
            if not isinstance(piece, str):
                raise TypeError(f"expected a string to join, found {type(piece).__name__}")
            between += (self, piece)
        return concatenate(between[1:])

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """See `join`."""
        if not old:
            return all_said(str.replace(self, old, new, count))
        return Traced(new, spans_of(new)).join(self.split(old, count))

    def strip(self, chars: str | None = None, /) -> str:
        """See `join`."""
        start = len(self) - len(str.lstrip(self, chars))
        return self._cut(start, max(start, len(str.rstrip(self, chars))))

    def lstrip(self, chars: str | None = None, /) -> str:
        """See `join`."""
        return self._cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        """See `join`."""
        return self._cut(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> str:
        """See `join`."""
        return self._cut(len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> str:
        """See `join`."""
        return self._cut(0, len(str.removesuffix(self, suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """See `join`."""
        return self._found(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """See `join`."""
        return self._found(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        """See `join`."""
        whole = str.splitlines(self, keepends=True)
        kept = whole if keepends else str.splitlines(self)
        starts = _starts(whole)
        return [self._cut(at, at + len(line)) for at, line in zip(starts, kept, strict=True)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        """See `join`."""
        return cast("tuple[str, str, str]", self._pieces(str.partition(self, sep)))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        """See `join`."""
        return cast("tuple[str, str, str]", self._pieces(str.rpartition(self, sep)))

    def upper(self) -> str:
        """Keeps exact marks if the length does not change, as do the methods that refer here."""
        return self._alike(str.upper(self))

    def lower(self) -> str:
        """See `upper`."""
        return self._alike(str.lower(self))

    def casefold(self) -> str:
        """See `upper`."""
        return self._alike(str.casefold(self))

    def capitalize(self) -> str:
        """See `upper`."""
        return self._alike(str.capitalize(self))

    def title(self) -> str:
        """See `upper`."""
        return self._alike(str.title(self))

    def swapcase(self) -> str:
        """See `upper`."""
        return self._alike(str.swapcase(self))

    def translate(self, table: Any, /) -> str:
        """Marks the whole result as the caller's, as do the methods that refer here."""
        return all_said(str.translate(self, table))

    def center(self, width: SupportsIndex, fillchar: str = " ", /) -> str:
        """See `translate`."""
        return all_said(str.center(self, width, fillchar))

    def ljust(self, width: SupportsIndex, fillchar: str = " ", /) -> str:
        """See `translate`."""
        return all_said(str.ljust(self, width, fillchar))

    def rjust(self, width: SupportsIndex, fillchar: str = " ", /) -> str:
        """See `translate`."""
        return all_said(str.rjust(self, width, fillchar))

    def zfill(self, width: SupportsIndex, /) -> str:
        """See `translate`."""
        return all_said(str.zfill(self, width))

    def expandtabs(self, tabsize: SupportsIndex = 8) -> str:
        """See `translate`."""
        return all_said(str.expandtabs(self, tabsize))

    def format(self, *values: Any, **named: Any) -> str:
        """See `translate`."""
        return all_said(str.format(self, *values, **named))

    def format_map(self, named: Any, /) -> str:
        """See `translate`."""
        return all_said(str.format_map(self, named))

    def _cut(self, start: int, stop: int) -> str:
        said = tuple(
            (max(first, start) - start, min(last, stop) - start)
            for first, last in self.said
            if first < stop and last > start
        )
        return traced(str.__getitem__(self, slice(start, stop)), said)

    def _pieces(self, pieces: Iterable[str]) -> tuple[str, ...]:
        pieces = tuple(pieces)
        starts = _starts(pieces)
        return tuple(self._cut(at, at + len(p)) for at, p in zip(starts, pieces, strict=True))

    def _found(self, pieces: list[str], sep: str | None) -> list[str]:
        """The pieces cut from this string; `sep` or, if None, white space lies between them."""
        found: list[str] = []
        at = 0
        for piece in pieces:
            start = at if sep is not None else str.index(self, piece, at)
            at = start + len(piece)
            found.append(self._cut(start, at))
            at += len(sep or "")
        return found

    def _alike(self, changed: str) -> str:
        return traced(changed, self.said) if len(changed) == len(self) else all_said(changed)


def traced(text: str, said: Spans) -> str:
    """`text` with marks; a plain string where no character is a caller's."""
    if not said:
        return text
    made = str.__new__(Traced, text)  # what `Traced()` does, in half the time
    made.said = said
    return made


def untraced(text: str) -> str:
    """The same characters without marks."""
    return "".join((text,)) if isinstance(text, Traced) else text


def spans_of(text: str) -> Spans:
    """The (start, end) of the characters that are a caller's."""
    return text.said if isinstance(text, Traced) else ()


def all_said(text: str) -> str:
    """`text`, all of it a caller's."""
    return traced(text, ((0, len(text)),) if text else ())


def _starts(pieces: Iterable[str]) -> list[int]:
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    return starts[:-1]


def concatenate(pieces: Iterable[str]) -> str:
    """The pieces put together, with their marks."""
    pieces = list(pieces)
    said: list[tuple[int, int]] = []
    at = 0
    for piece in pieces:
        if isinstance(piece, Traced):
            for start, stop in piece.said:
                if said and said[-1][1] == at + start:
                    said[-1] = (said[-1][0], at + stop)
                else:
                    said.append((at + start, at + stop))
        at += len(piece)
    return traced("".join(pieces), tuple(said))


def said(value: Any) -> Any:
    """A caller's plain data with every string in it marked, keys too."""
    if isinstance(value, str):
        return all_said(value)
    if isinstance(value, Mapping):
        return {said(key): said(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [said(item) for item in value]
    return value


def holds_said(value: Any) -> bool:
    """Whether anything in plain data is a caller's."""
    if isinstance(value, str):
        return isinstance(value, Traced)
    if isinstance(value, Mapping):
        return any(map(holds_said, chain(value.keys(), value.values())))
    if isinstance(value, list | tuple):
        return any(map(holds_said, value))
    return False


def as_text(value: Any) -> str:
    """`value` as a template prints it; a caller's if it holds caller's text or is not plain."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, int | float):
        return str(value)
    return all_said(str(value)) if holds_said(value) or not _is_plain(value) else str(value)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | list | tuple | Mapping)
