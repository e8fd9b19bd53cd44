"""KV-cache eviction in the engine: score keys by attention, move survivors to slots, swap, and drop
thoughts that have ended."""

from collections.abc import Sequence as List
from functools import partial

import torch
from torch import Tensor

from ...kvcache.attention_record import AttentionRecord
from ...kvcache.eviction_state import EvictionState
from ...kvcache.pages import PagePool
from ...kvcache.slot_table import SlotTable
from ...kvcache.store import KVStore
from ..state.dropped_thought import DroppedThought
from ..state.request import Request
from ..state.sequence import Context, Sequence
from ..state.step import Chunk, Decoded, Step


class Eviction:
    """Carries out evictions in `store`; what to evict is decided by each `EvictionState`."""

    def __init__(self, store: KVStore, pool: PagePool) -> None:
        self._store = store
        self._pool = pool

    def eviction_state_for(self, request: Request, prompt: tuple[int, ...]) -> EvictionState | None:
        """The state of a context with this prompt; None: none of its keys is ever evicted."""
        retention = request.retention
        if retention is None or not retention.evicts(len(prompt), request.max_tokens):
            return None
        return EvictionState(
            request.policy,
            retention,
            kv_heads=self._store.keys[0].shape[1],
            windows=self._store.windows,
            device=self._store.keys[0].device,
        )

    def dropped_thought_for(
        self, request: Request, prompt: tuple[int, ...]
    ) -> DroppedThought | None:
        """The thought behind this prompt, if its keys go when it has ended; None: they stay."""
        if request.dropped_thinking is None:
            return None
        thought = DroppedThought(
            thinking=request.dropped_thinking,
            answer_start=len(prompt) - request.answered,
            window=max(filter(None, self._store.windows), default=0),
        )
        thought.read(prompt)
        return thought

    def swap_out(self, sequence: Sequence) -> None:
        """Copy the slots of a preempted sequence to the host: they cannot be computed again."""
        for context in sequence.contexts:
            if context.in_slots and context.swapped is None:
                slots = self._slots(context)
                context.swapped = []
                for layer in range(len(self._store.keys)):
                    stored = self._store.read_slots(layer, slots)
                    context.swapped.append(tuple(each.cpu() for each in stored))
                if context.recurrent is not None:
                    context.recurrent.swap_out()

    def swap_in(self, context: Context) -> None:
        """Write the copied slots back, into the pages that the context has now."""
        assert context.swapped is not None
        slots = self._slots(context)
        for layer, stored in enumerate(context.swapped):
            back = tuple(each.to(slots.device) for each in stored)
            self._store.write_slots(layer, slots, back)
        context.swapped = None

    def _slots(self, context: Context) -> Tensor:
        """Where the slots of every head are: int64 `[K, S]`."""
        assert context.eviction_state is not None
        keys = self._store.keys[0]
        slots = context.slot_table.index(context.eviction_state.retention.slots, keys.device)
        return slots.expand(keys.shape[1], -1)

    def note_certain(self, step: Step) -> None:
        """Credit keys with the attention of chunks without a draft, whose rows all stay."""
        for chunk in step.chunks:
            eviction_state = chunk.context.eviction_state
            if eviction_state is None or chunk.draft is not None:
                continue
            if chunk.attention_record is None:
                eviction_state.add_unscored(chunk.count)
            elif eviction_state.in_slots:
                eviction_state.end_row(chunk.attention_record)
            else:
                eviction_state.add_prompt(chunk.attention_record, chunk.count)

    def evict(self, step: Step, decoded: List[Decoded], ended: List[Sequence]) -> list[Sequence]:
        """Credit keys with the attention of accepted draft rows; drop thoughts; then move survivors
        to slots.

        Returns the sequences whose policy has raised.
        """
        if not any(chunk.context.eviction_state or chunk.context.thought for chunk in step.chunks):
            return []
        stays = {id(item.sequence): [0, *(1 + i for i in item.accepted)] for item in decoded}
        gone = {id(sequence) for sequence in ended}
        for chunk in step.chunks:
            eviction_state = chunk.context.eviction_state
            if eviction_state is None or chunk.draft is None or id(chunk.sequence) in gone:
                continue
            rows = stays[id(chunk.sequence)]
            if chunk.attention_record is None:
                eviction_state.add_unscored(len(rows))
            else:
                self._note_rows(chunk, eviction_state, chunk.attention_record, rows)
        for chunk in step.chunks:
            if id(chunk.sequence) not in gone:
                self._drop_thought(chunk.context)
        for item in decoded:
            if id(item.sequence) not in gone:
                for context in item.sequence.contexts:
                    if context.eviction_state is not None and context.eviction_state.must_move:
                        self._move_to_slots(context)
        living = {id(c.sequence): c.sequence for c in step.chunks if id(c.sequence) not in gone}
        return [sequence for sequence in living.values() if _is_broken(sequence)]

    def _note_rows(
        self,
        chunk: Chunk,
        eviction_state: EvictionState,
        attention_record: AttentionRecord,
        rows: list[int],
    ) -> None:
        """Credit keys with the attention of accepted rows; in slots, write these rows' keys."""
        slots = eviction_state.add_rows(attention_record, rows)
        if slots is None:
            return
        places = self._slots(chunk.context)
        for layer, stored in enumerate(attention_record.stored):
            where = places.gather(1, slots[layer])
            self._store.write_slots(layer, where, tuple(each[:, rows] for each in stored))

    def _drop_thought(self, context: Context) -> None:
        """Drop the keys of a thought whose end has just been computed."""
        thought = context.thought
        if thought is None or thought.first is None or not thought.is_due(context.computed):
            return
        assert thought.end is not None
        thought.dropped = True
        if not context.in_slots:
            moves = context.page_table.drop(thought.first, thought.end)
            if moves:
                sources, targets = zip(*moves, strict=True)
                self._store.move_slots(sources, targets)
        if context.eviction_state is not None:
            context.eviction_state.drop(thought.first, thought.end)

    def _move_to_slots(self, context: Context) -> None:
        """Move the survivors of the first eviction to pages of their own; free the others."""
        eviction_state, table = context.eviction_state, context.page_table
        assert eviction_state is not None
        device = self._store.keys[0].device
        lies = torch.tensor(table.slots(0, eviction_state.length), device=device)
        kept = eviction_state.move_to_slots(partial(self._store.read_keys, slots_R=lies))
        pages = table.take_reserve(context.slot_pages)
        context.table = SlotTable(self._pool, pages, table.page_size)
        places = self._slots(context)[:, : kept.shape[2]]
        try:
            for layer in range(kept.shape[0]):
                stored = self._store.read_slots(layer, lies[kept[layer]])
                self._store.write_slots(layer, places, stored)
        finally:
            table.free()


def _is_broken(sequence: Sequence) -> bool:
    states = (context.eviction_state for context in sequence.contexts)
    return any(state is not None and state.broken for state in states)
