"""The states of one context beside its keys and values, in models whose layers have some."""

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from .state_pool import StatePool


class RecurrentState:
    """A slot of the state store, from the first token that is computed until the context is freed.

    `length`: tokens that the states have read. `wanted`: where snapshots are to be taken, in
    tokens, at ends of pages. `unnamed`: snapshots by their length, which have no key yet.
    `drafted`: what modules were given for the rows of a draft, which the states have not read.
    """

    def __init__(self, pool: StatePool) -> None:
        self._pool = pool
        self.slot: int | None = None
        self.length = 0
        self.wanted: set[int] = set()
        self.unnamed: dict[int, int] = {}
        self.drafted: list[Any] = []
        self._last_named: Hashable | None = None
        self._swapped: list[Tensor] | None = None

    def hold(self) -> int:
        """Its slot, which is taken with the first call."""
        if self.slot is None:
            self.slot = self._pool.take()
            if self._swapped is not None:
                self._pool.store.write(self.slot, self._swapped)
                self._swapped = None
        return self.slot

    def adopt(self, key: Hashable, length: int) -> bool:
        """Start from a snapshot of so many tokens; False: it is gone."""
        source = self._pool.find(key)
        if source is None:
            return False
        # The snapshot may be the one that gives way; its slot then is the one that is taken.
        target = self.hold()
        if target != source:
            self._pool.store.copy(source, target)
        self.length = length
        return True

    def fork(self) -> "RecurrentState":
        """Another context's states, equal to these."""
        assert not self.drafted, "contexts fork where no draft is verified"
        fork = RecurrentState(self._pool)
        fork.length = self.length
        if self.slot is not None:
            self._pool.store.copy(self.slot, fork.hold())
        return fork

    def points(self, first: int, last: int) -> list[int]:
        """Where rows `first` to `last` - 1 have to be cut for snapshots that are wanted."""
        return sorted(at for at in self.wanted if first < at <= last)

    def begin_snapshot(self, length: int) -> int | None:
        """A slot for the snapshot at `length` tokens; None: there is none to spare."""
        self.wanted.discard(length)
        slot = self._pool.begin_snapshot()
        if slot is not None:
            self.unnamed[length] = slot
        return slot

    def name_snapshot(self, length: int, key: Hashable | None, *, answer: bool) -> None:
        """Keep the snapshot at `length` tokens; None: drop it.

        Of the snapshots of an answer (`answer`) only the last one stays.
        """
        self._pool.end_snapshot(self.unnamed.pop(length), key)
        if answer and key is not None:
            if self._last_named is not None:
                self._pool.drop(self._last_named)
            self._last_named = key

    def hand_over(self, key: Hashable) -> None:
        """Leave the states behind as a snapshot, at the end of the context."""
        if self.slot is not None and not self.drafted:
            self._pool.hand_over(self.slot, key)
            self.slot = None

    def swap_out(self) -> None:
        """Copy the states to the host and give back the slot, until `hold` is called.

        Nothing where they are on the host: the context has had no row since.
        """
        if self.slot is None:
            return
        assert not self.drafted
        states = self._pool.store.read(self.slot)
        length = self.length
        self.free()
        self.length, self._swapped = length, states

    def free(self) -> None:
        """Give back what it holds; it then has read nothing."""
        if self.slot is not None:
            self._pool.release(self.slot)
        for slot in self.unnamed.values():
            self._pool.end_snapshot(slot, None)
        self.slot, self.length, self._swapped = None, 0, None
        self.unnamed.clear()
        self.drafted.clear()
        self.wanted.clear()
