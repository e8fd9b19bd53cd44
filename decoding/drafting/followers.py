"""N-gram statistics over many answers: which tokens followed the last few."""

from collections.abc import Sequence
from itertools import islice
from typing import Final

LONGEST_CONTEXT: Final = 4
_MAX_CONTEXTS: Final = 50_000
_MOST_TOKENS: Final = 16
_FORGET_AT: Final = 64
_SEEN_OFTEN: Final = 4


class Followers:
    """Counts what follows contexts of 1 to 4 tokens; the oldest contexts are forgotten first."""

    def __init__(self, most: int = _MAX_CONTEXTS) -> None:
        self._most = most
        # How often each token came after a context; the rarest tokens are forgotten.
        self._of: dict[tuple[int, ...], dict[int, float]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def learn(self, tokens: Sequence[int], first: int) -> None:
        """Count each of `tokens[first:]` after the tokens before it."""
        known = self._of
        for at in range(max(1, first), len(tokens)):
            token = tokens[at]
            for length in range(1, min(LONGEST_CONTEXT, at) + 1):
                context = tuple(tokens[at - length : at])
                counts = known.get(context)
                if counts is None:
                    known[context] = {token: 1.0}
                    if len(known) > self._most:
                        for oldest in list(islice(known, self._most // 8 + 1)):
                            del known[oldest]
                else:
                    _count(counts, token)

    def after(self, tail: tuple[int, ...]) -> dict[int, tuple[float, int]]:
        """Tokens that may follow `tail`: each one's share of the counts, and the evidence for it.

        The longest known context counts; if it has been seen rarely, shorter ones add further
        tokens. The evidence is a number that packs the length of the context, how often the token
        followed it and how often any did.
        """
        found: dict[int, tuple[float, int]] = {}
        known = self._of
        for start in range(max(0, len(tail) - LONGEST_CONTEXT), len(tail)):
            counts = known.get(tail[start:])
            if counts is None:
                continue
            total = 0.0
            for count in counts.values():  # `sum` adds up more exactly in some versions of Python
                total += count
            grounds = ((len(tail) - start) << 6) + _size(total)
            for token, count in counts.items():
                if token not in found:
                    found[token] = count / (total + 1.0), grounds + (_size(count) << 3)
            if total >= _SEEN_OFTEN:
                break
        return found


def _count(counts: dict[int, float], token: int) -> None:
    if token not in counts and len(counts) == _MOST_TOKENS:
        rarest = min(counts, key=counts.__getitem__)
        counts[rarest] -= 1.0
        if counts[rarest] <= 0:
            del counts[rarest]
            counts[token] = 1.0
        return
    counts[token] = counts.get(token, 0.0) + 1.0
    if counts[token] > _FORGET_AT:
        for each in counts:
            counts[each] /= 2


def _size(count: float) -> int:
    """Order of magnitude of a count, in 3 bits."""
    return min(int(count).bit_length(), 7)
