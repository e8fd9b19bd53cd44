"""Who has which slot of the state store: running sequences, and snapshots of what was read before.

A state cannot be cut to a shorter text, as keys and values can. So a prompt that begins like an
earlier one can only go on from a snapshot, which is taken where a page ends, and needs the pages of
keys and values up to there as well.
"""

from collections import OrderedDict
from collections.abc import Hashable

from .state_store import StateStore


class StatePool:
    """Hands out slots. Snapshots, by key, fill those that no sequence needs; the oldest gives way.

    `running`: slots that sequences may hold at once; the others can be taken for new snapshots.
    """

    def __init__(self, store: StateStore, *, running: int) -> None:
        self.store = store
        self.running = running
        self._free = list(range(store.slots - 1, -1, -1))
        self._held = 0
        self._unnamed = 0
        self._snapshots: OrderedDict[Hashable, int] = OrderedDict()

    @property
    def in_use(self) -> int:
        """Slots that sequences hold."""
        return self._held

    @property
    def snapshots(self) -> int:
        """Slots that hold a snapshot."""
        return len(self._snapshots)

    @property
    def free(self) -> int:
        """Slots that hold nothing."""
        return len(self._free)

    def take(self) -> int:
        """A slot for a sequence; the oldest snapshot goes for it if need be."""
        assert self._held < self.running, "as many sequences run as there are slots for"
        self._held += 1
        return self._next()

    def release(self, slot: int) -> None:
        """Give back a sequence's slot."""
        self._held -= 1
        self._free.append(slot)

    def begin_snapshot(self) -> int | None:
        """A slot for a snapshot that has no key yet; None: there is none to spare."""
        if self._unnamed >= self.store.slots - self.running:
            return None
        self._unnamed += 1
        return self._next()

    def end_snapshot(self, slot: int, key: Hashable | None) -> None:
        """Keep what `begin_snapshot` gave under a key; None: give the slot back.

        Where the key has a snapshot already, that one stays.
        """
        self._unnamed -= 1
        if key is None or self.find(key) is not None:
            self._free.append(slot)
        else:
            self._snapshots[key] = slot

    def hand_over(self, slot: int, key: Hashable) -> None:
        """Make a sequence's slot, which it has no more, the snapshot of a key."""
        self.drop(key)
        self._held -= 1
        self._snapshots[key] = slot

    def find(self, key: Hashable) -> int | None:
        """The slot of a snapshot, which counts as used now; None: there is none."""
        slot = self._snapshots.get(key)
        if slot is not None:
            self._snapshots.move_to_end(key)
        return slot

    def has(self, key: Hashable) -> bool:
        """Whether there is a snapshot of this key."""
        return key in self._snapshots

    def drop(self, key: Hashable) -> None:
        """Forget a snapshot, if there is one."""
        slot = self._snapshots.pop(key, None)
        if slot is not None:
            self._free.append(slot)

    def clear(self) -> None:
        """Forget all snapshots."""
        for key in list(self._snapshots):
            self.drop(key)

    def _next(self) -> int:
        if not self._free:
            _, slot = self._snapshots.popitem(last=False)
            return slot
        return self._free.pop()
