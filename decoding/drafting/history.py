"""Where a sequence's last tokens stood before, and what followed them then."""

from array import array
from collections.abc import Sequence

_ITEM = 4


class History:
    """The tokens of a sequence as one run of memory, which is searched at the speed of memory."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._bytes = bytearray(array("i", tokens).tobytes())

    def __len__(self) -> int:
        return len(self._bytes) // _ITEM

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        self._bytes += array("i", tokens).tobytes()

    def follow(
        self, guesses: Sequence[int], count: int, *, longest: int, shortest: int
    ) -> list[int]:
        """At most `count` tokens that came after the latest earlier occurrence of the last ones.

        The last ones are those of the history and the `guesses` behind it: `longest` of them, or
        fewer down to `shortest` where that many did not occur.
        """
        tail = self._bytes[-longest * _ITEM :] + array("i", guesses[-longest:]).tobytes()
        for length in range(min(longest, len(tail) // _ITEM), shortest - 1, -1):
            needle = bytes(tail[-length * _ITEM :])
            # Something has to follow: what ends with the history is the tail itself.
            at = self._find(needle, len(self._bytes) - _ITEM)
            if at is not None:
                start = at + length * _ITEM
                found = array("i")
                found.frombytes(bytes(self._bytes[start : start + count * _ITEM]))
                return found.tolist()
        return []

    def _find(self, needle: bytes, end: int) -> int | None:
        """Offset of the last occurrence that ends at `end` or before, on a whole token."""
        at = self._bytes.rfind(needle, 0, max(0, end))
        while at >= 0 and at % _ITEM:
            at = self._bytes.rfind(needle, 0, at + len(needle) - 1)
        return at if at >= 0 else None
