"""Draft tokens from compiled code (`kernels/suggest`): those of suggest.py, in less time.

The time of one call decides whether many sequences can draft before each step: decision 0027.
"""

from array import array
from collections.abc import Sequence
from ctypes import c_double, c_int32
from typing import Any

from ...kernels.native.library import Library, Unavailable, library
from . import suggest
from .draft import Draft
from .suggest import LEAST_CHANCE


def new_memory() -> "suggest.Memory | Memory":
    """A memory for suggesters, compiled if the library is available."""
    found = library()
    return suggest.Memory() if isinstance(found, Unavailable) else Memory(found)


class Memory:
    """See `suggest.Memory`."""

    def __init__(self, library: Library) -> None:
        self.call: Any = library.call
        self.handle: int = self.call.memory_new()

    def __del__(self) -> None:
        self.call.memory_free(self.handle)

    def suggester(
        self,
        prompt: Sequence[int],
        *,
        longest: int,
        shortest: int,
        shared: bool,
        trees: bool = True,
    ) -> "Suggester":
        """See `suggest.Memory`."""
        return Suggester(self, prompt, longest, shortest, shared=shared, trees=trees)


class Suggester:
    """See `suggest.Suggester`."""

    def __init__(
        self,
        memory: Memory,
        prompt: Sequence[int],
        longest: int,
        shortest: int,
        *,
        shared: bool,
        trees: bool,
    ) -> None:
        self._memory = memory  # keeps it alive: the compiled suggester points to it
        self._call = memory.call
        self._known = len(prompt)
        place, size = _tokens(prompt)
        self._handle: int = self._call.suggester_new(
            memory.handle if shared else None,
            place.buffer_info()[0],
            size,
            longest,
            shortest,
            trees,
        )
        self._sums: Any = None
        self._room = self._made = 0

    def __del__(self) -> None:
        self._call.suggester_free(self._handle)

    def suggest(
        self,
        count: int,
        limit: int,
        carried: Sequence[int] = (),
        worth: float = LEAST_CHANCE,
    ) -> int:
        """See `suggest.Suggester`."""
        if count > self._room:
            self._sums, self._room = (c_double * count)(), count
        place, size = _tokens(carried)
        self._made = self._call.suggest(
            self._handle, count, limit, place.buffer_info()[0], size, worth, self._sums
        )
        return self._made

    def expected(self) -> list[float]:
        """See `suggest.Suggester`."""
        return self._sums[: self._made] if self._made else []

    def draft(self, size: int) -> Draft:
        """See `suggest.Suggester`."""
        size = min(size, self._made)
        tokens, parents = (c_int32 * size)(), (c_int32 * size)()
        is_line = self._call.suggester_draft(self._handle, size, tokens, parents)
        return Draft(tokens[:], None if is_line else parents[:])

    def learn(self, tokens: Sequence[int]) -> None:
        """See `suggest.Suggester`."""
        place, size = _tokens(tokens[self._known :])
        if size:
            self._known += size
            self._made = 0
            self._call.suggester_learn(self._handle, place.buffer_info()[0], size)

    def finish(self, tokens: Sequence[int]) -> None:
        """See `suggest.Suggester`."""
        self.learn(tokens)
        self._call.suggester_finish(self._handle)


def _tokens(tokens: Sequence[int]) -> tuple["array[int]", int]:
    return array("i", tokens), len(tokens)
