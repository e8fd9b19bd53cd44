"""What the engine does for contexts under an evicting cache policy: credit, move, write, swap."""

import torch
from torch import Tensor

from ...kvcache.keeping import Attended, Keeping
from ...kvcache.pages import PagePool
from ...kvcache.slot_table import SlotTable
from ...kvcache.store import KVStore
from ...kvcache.table import PageTable
from ..state.request import Request
from ..state.sequence import Branch, Sequence
from ..state.step import Chunk, Decoded, Step


class Eviction:
    """Moves keys and values in `store`; the state of each context is its `Keeping`."""

    def __init__(self, store: KVStore, pool: PagePool) -> None:
        self._store = store
        self._pool = pool

    def keeping_for(self, request: Request, prompt: tuple[int, ...]) -> Keeping | None:
        """The state of a context with that prompt; None: nothing of it is ever evicted."""
        retention = request.retention
        if retention is None or not retention.evicts(len(prompt), request.max_tokens):
            return None
        layers, device = len(self._store.keys), self._store.keys[0].device
        return Keeping(retention, layers, self._store.keys[0].shape[1], device)

    def swap_out(self, sequence: Sequence) -> None:
        """What evicted contexts hold cannot be computed again: keep a copy."""
        for branch in sequence.branches:
            if isinstance(branch.table, SlotTable) and branch.swapped is None:
                slots = self._slots(branch)
                branch.swapped = []
                for layer in range(len(self._store.keys)):
                    stored = self._store.read_slots(layer, slots)
                    branch.swapped.append(tuple(each.cpu() for each in stored))

    def swap_in(self, branch: Branch) -> None:
        """Put back what was kept, into the pages that it has now."""
        assert branch.swapped is not None
        slots = self._slots(branch)
        for layer, stored in enumerate(branch.swapped):
            back = tuple(each.to(slots.device) for each in stored)
            self._store.write_slots(layer, slots, back)
        branch.swapped = None

    def _slots(self, branch: Branch) -> Tensor:
        """Where the slots of every head are: int64 `[K, S]`."""
        assert branch.keeping is not None
        assert isinstance(branch.table, SlotTable)
        keys = self._store.keys[0]
        slots = branch.table.index(branch.keeping.retention.slots, keys.device)
        return slots.expand(keys.shape[1], -1)

    def note_certain(self, step: Step) -> None:
        """Credit keys with the attention of rows that are certain to stay: all but guesses."""
        for chunk in step.chunks:
            keeping = chunk.branch.keeping
            if keeping is None or chunk.draft is not None:
                continue
            if chunk.attended is None:
                keeping.add_unscored(chunk.count)
            elif keeping.in_slots:
                keeping.end_row(chunk.attended)
            else:
                keeping.add_prompt(chunk.attended, chunk.count)

    def evict(self, step: Step, decoded: list[Decoded], ended: list[Sequence]) -> None:
        """Credit keys with the attention of guesses that stay, and let those go that must."""
        if all(chunk.branch.keeping is None for chunk in step.chunks):
            return
        stays = {id(item.sequence): [0, *(1 + i for i in item.accepted)] for item in decoded}
        gone = {id(sequence) for sequence in ended}
        for chunk in step.chunks:
            keeping = chunk.branch.keeping
            if keeping is None or chunk.draft is None or id(chunk.sequence) in gone:
                continue
            rows = stays[id(chunk.sequence)]
            if chunk.attended is None:
                keeping.add_unscored(len(rows))
            else:
                self._note_rows(chunk, keeping, chunk.attended, rows)
        for item in decoded:
            if id(item.sequence) not in gone:
                for branch in item.sequence.branches:
                    if branch.keeping is not None and branch.keeping.must_move:
                        self._move_to_slots(branch)

    def _note_rows(
        self, chunk: Chunk, keeping: Keeping, attended: Attended, rows: list[int]
    ) -> None:
        """Credit keys with the attention of the rows that stay; write those rows' keys."""
        slots = keeping.add_rows(attended, rows)
        if slots is None:
            return
        places = self._slots(chunk.branch)
        for layer, stored in enumerate(attended.stored):
            where = places.gather(1, slots[layer])
            self._store.write_slots(layer, where, tuple(each[:, rows] for each in stored))

    def _move_to_slots(self, branch: Branch) -> None:
        """The survivors of the first eviction go to pages of their own; all others are free."""
        keeping, table = branch.keeping, branch.table
        assert keeping is not None
        assert isinstance(table, PageTable)
        size, device = self._store.page_size, self._store.keys[0].device
        at = torch.arange(keeping.length, device=device)
        lies = torch.tensor(table.pages, device=device)[at // size] * size + at % size
        kept = keeping.move_to_slots()
        branch.table = SlotTable(self._pool, table.take_reserve(branch.slot_pages), size)
        places = self._slots(branch)[:, : kept.shape[2]]
        try:
            for layer in range(kept.shape[0]):
                stored = self._store.read_slots(layer, lies[kept[layer]])
                self._store.write_slots(layer, places, stored)
        finally:
            table.free()
