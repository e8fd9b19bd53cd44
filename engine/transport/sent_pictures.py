"""Pictures that the engine's process already has: their arrays cross the socket once.

Every subrequest of a search has the pictures of its request, and every turn of a chat those of the
turns before. Both ends keep the same recent pictures: they see the same messages in the same order,
and forget by the same rule.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from ..state.pictures import Picture

_MOST_BYTES: Final = 128 << 20


class SentPictures:
    """One end's recent pictures, of at most `most_bytes` but for the newest."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._recent: OrderedDict[bytes, Picture] = OrderedDict()

    def to_send(self, pictures: Iterable[Picture]) -> tuple[Picture, ...]:
        """The pictures, without the arrays of those that the other end has."""
        sent: list[Picture] = []
        for picture in pictures:
            known = picture.digest in self._recent
            self._keep(picture)
            sent.append(replace(picture, arrays={}) if known else picture)
        return tuple(sent)

    def received(self, pictures: Iterable[Picture]) -> tuple[Picture, ...]:
        """The pictures as they were before `to_send` of the other end."""
        whole: list[Picture] = []
        for picture in pictures:
            if not picture.arrays:
                picture = replace(picture, arrays=self._recent[picture.digest].arrays)
            self._keep(picture)
            whole.append(picture)
        return tuple(whole)

    def _keep(self, picture: Picture) -> None:
        if picture.digest not in self._recent:
            self._recent[picture.digest] = picture
            self._bytes += _bytes(picture)
        self._recent.move_to_end(picture.digest)
        while self._bytes > self._most_bytes and len(self._recent) > 1:
            self._bytes -= _bytes(self._recent.popitem(last=False)[1])


def _bytes(picture: Picture) -> int:
    return sum(len(array.data) for array in picture.arrays.values())
