"""Prompt lookup: where a sequence's last tokens occurred before, and what followed them there."""

from array import array
from collections.abc import Sequence

_ITEM = 4


class History:
    """The tokens of a sequence as contiguous bytes, which `bytearray.rfind` searches quickly."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._bytes = bytearray(array("i", tokens).tobytes())

    def __len__(self) -> int:
        return len(self._bytes) // _ITEM

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        self._bytes += array("i", tokens).tobytes()

    def match(self, count: int, *, longest: int, shortest: int) -> tuple[int, list[int]]:
        """How many of the last tokens occurred before, and the tokens that followed them there.

        Tries `longest` last tokens, then fewer, down to `shortest`; of several places the latest
        counts. Returns at most `count` following tokens; (0, []) if nothing was found.
        """
        known = len(self)
        for length in range(min(longest, known - 1), shortest - 1, -1):
            needle = bytes(self._bytes[-length * _ITEM :])
            # A token has to follow: a match at the very end is the last tokens themselves.
            at = self._find(needle, len(self._bytes) - _ITEM)
            if at is not None:
                start = at + length * _ITEM
                found = array("i")
                found.frombytes(bytes(self._bytes[start : start + count * _ITEM]))
                return length, found.tolist()
        return 0, []

    def _find(self, needle: bytes, end: int) -> int | None:
        """Byte offset of the last occurrence that ends by `end` and begins at a whole token."""
        at = self._bytes.rfind(needle, 0, max(0, end))
        while at >= 0 and at % _ITEM:
            at = self._bytes.rfind(needle, 0, at + len(needle) - 1)
        return at if at >= 0 else None
