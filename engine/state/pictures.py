"""Pictures of a request, and where their rows are in a prompt.

prompt    t t t P P P P t t P P P P t t        P: a placeholder, whose row is one of a picture
spans           [0     ]    [1     ]
"""

from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelArray:
    """One array that a picture became, as it travels between processes.

    `dtype`: its name in numpy. `data`: the numbers in C order.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: npt.NDArray[np.generic]) -> "PixelArray":
        """The same numbers as bytes."""
        return cls(dtype=str(array.dtype), shape=array.shape, data=array.tobytes())

    def numpy(self) -> npt.NDArray[np.generic]:
        """The array, not to be written to."""
        return np.frombuffer(self.data, dtype=self.dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture as the model's processor prepared it.

    `digest`: SHA-256 of `arrays`. `text`: what stands for it in a prompt, with placeholders.
    `rows`: how many placeholders. `arrays`: what the model's tower takes, by name.
    """

    digest: bytes
    text: str
    rows: int
    arrays: Mapping[str, PixelArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSpan:
    """Consecutive placeholders of one picture: tokens `[start, stop)`.

    `first`: the picture's row at `start`.
    """

    start: int
    stop: int
    picture: Picture
    first: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedPictures:
    """Pictures in one prompt. `spans`: in order.

    `positions`: int64 `[A, prompt]`, where each token has a position on each of A axes; None: a
    token's position is its number. `sees_ahead`: rows of one span see each other. `shift`: how far
    the positions of tokens behind the prompt are from their numbers.
    """

    spans: tuple[PictureSpan, ...]
    positions: Integers | None
    sees_ahead: bool
    shift: int
    _names: tuple[Hashable, ...] = field(repr=False)

    @classmethod
    def of(
        cls,
        spans: tuple[PictureSpan, ...],
        prompt: Sequence[int],
        positions: Integers | None,
        *,
        sees_ahead: bool,
    ) -> "PlacedPictures":
        """Pictures at these spans of `prompt`."""
        names: list[Hashable] = list(prompt[: spans[-1].stop])
        for span in spans:
            digest = span.picture.digest
            names[span.start : span.stop] = [
                (digest, row) for row in range(span.first, span.first + span.stop - span.start)
            ]
        shift = 0 if positions is None else int(positions.max()) + 1 - len(prompt)
        return cls(
            spans=spans,
            positions=positions,
            sees_ahead=sees_ahead,
            shift=shift,
            _names=tuple(names),
        )

    def names(self, tokens: Sequence[int]) -> Sequence[Hashable]:
        """What the prefix cache knows these tokens by: a placeholder by its picture and row."""
        known = self._names[: len(tokens)]
        return [*known, *tokens[len(known) :]]

    def position(self, at: int) -> int:
        """The position of a token behind the prompt, or the first of several within it."""
        if self.positions is not None and at < self.positions.shape[1]:
            return int(self.positions[0, at])
        return at + self.shift

    def within(self, begin: int, end: int) -> list[PictureSpan]:
        """The parts of the spans that are among the tokens `begin` to `end` - 1."""
        found: list[PictureSpan] = []
        for span in self.spans:
            start, stop = max(begin, span.start), min(end, span.stop)
            if start < stop:
                first = span.first + start - span.start
                part = PictureSpan(start=start, stop=stop, picture=span.picture, first=first)
                found.append(part)
        return found

    def has_ahead(self, begin: int, end: int) -> bool:
        """Whether a row among the tokens `begin` to `end` - 1 sees a later one."""
        return self.sees_ahead and any(
            span.stop - span.start > 1 for span in self.within(begin, end)
        )

    def whole(self, begin: int, count: int) -> int:
        """How many rows from token `begin` on to compute, where `count` are wanted, at least 1.

        Rows that see each other are computed together: fewer, or more where a span begins there.
        """
        end = begin + count
        if not self.sees_ahead:
            return count
        index = bisect_right([span.start for span in self.spans], end - 1) - 1
        if index < 0 or self.spans[index].stop <= end:
            return count
        span = self.spans[index]
        return span.start - begin if span.start > begin else span.stop - begin


def spans_of(
    prompt: Sequence[int], pictures: Sequence[Picture], placeholder: int
) -> tuple[PictureSpan, ...]:
    """Where the rows of the pictures are, in their order: at the first placeholders.

    Empty: the prompt has fewer placeholders than they have rows, so it is one without them.
    """
    if not pictures:
        return ()
    at = [index for index, token in enumerate(prompt) if token == placeholder]
    if len(at) < sum(picture.rows for picture in pictures):
        return ()
    found: list[PictureSpan] = []
    taken = 0
    for picture in pictures:
        places = at[taken : taken + picture.rows]
        taken += picture.rows
        begin = 0
        for row in range(1, len(places) + 1):
            if row == len(places) or places[row] != places[row - 1] + 1:
                span = PictureSpan(
                    start=places[begin], stop=places[row - 1] + 1, picture=picture, first=begin
                )
                found.append(span)
                begin = row
    return tuple(found)
