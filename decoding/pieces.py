"""The bytes that tokens add to a text, and lookups by prefix and by substring."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

Ids = np.ndarray[Any, np.dtype[np.int64]]
_NONE: Ids = np.empty(0, dtype=np.int64)


class Pieces:
    """The bytes that each token adds to a text; empty for those that add none.

    `special`: the bytes of special tokens in texts that show them.

    Built once for a vocabulary. Tokens are sorted by their bytes, so that those with a common
    prefix are adjacent and two bisections find them.
    """

    def __init__(self, of: Sequence[bytes], special: Mapping[int, bytes] | None = None) -> None:
        self.of = of
        self._special = special or {}
        self.longest = max(map(len, of), default=0)
        spelled = [token for token, piece in enumerate(of) if piece]
        spelled.sort(key=of.__getitem__)
        self._ordered = [of[token] for token in spelled]
        self._order: Ids = np.array(spelled, dtype=np.int64)

    @cached_property
    def with_special(self) -> "Pieces":
        """The pieces for texts that show special tokens."""
        return Pieces([self._special.get(token, piece) for token, piece in enumerate(self.of)])

    def beginning_with(self, head: bytes) -> Ids:
        """Tokens whose bytes begin with `head`, which is not empty."""
        first = bisect_left(self._ordered, head)
        behind = successor(head)
        last = len(self._ordered) if behind is None else bisect_left(self._ordered, behind, first)
        return self._order[first:last]

    def containing(self, word: bytes) -> Ids:
        """Tokens whose bytes contain the whole of `word`; some are listed more than once."""
        if len(word) > self.longest:
            return _NONE
        text, owners, ends, places = self._joined
        # Its rarest byte leaves the fewest places to look at.
        rarest = min(range(len(word)), key=lambda i: places[word[i]].size)
        at = places[word[rarest]] - rarest
        at = at[(at >= 0) & (at + len(word) <= text.size)]
        for offset, byte in enumerate(word):
            if offset != rarest:
                at = at[text[at + offset] == byte]
        owner = owners[at]
        return self._order[owner[at + len(word) <= ends[owner]]]

    @cached_property
    def _joined(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], Ids, list[Ids]]:
        """All bytes in order, the owner of each, each token's end, and the places of each value."""
        text = np.frombuffer(b"".join(self._ordered), dtype=np.uint8)
        lengths = np.array([len(piece) for piece in self._ordered], dtype=np.int64)
        owners = np.repeat(np.arange(lengths.size, dtype=np.int32), lengths)
        order = np.argsort(text, kind="stable")
        bounds = np.searchsorted(text[order], np.arange(257))
        places = [order[bounds[byte] : bounds[byte + 1]] for byte in range(256)]
        return text, owners, np.cumsum(lengths), places


def successor(head: bytes) -> bytes | None:
    """The least bytes that sort after everything that begins with `head`; None: there are none."""
    rest = head.rstrip(b"\xff")
    return rest[:-1] + bytes([rest[-1] + 1]) if rest else None
