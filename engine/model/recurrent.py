"""States in a step: which rows are read together, from which slots, where snapshots are taken."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from ...kvcache.recurrent_state import RecurrentState
from ...kvcache.state_pool import StatePool
from ...kvcache.state_store import StateStore, slot_bytes
from ..recurrent.modules import AttentionStep, Stateful
from ..recurrent.parts import Part, StepStates, read_kept
from ..state.step import Chunk
from .memory import state_slots
from .settings import CacheSettings

logger = logging.getLogger(__name__)

EVERY_PAGES: Final = 4
"""Pages of an answer between its snapshots, of which the last one stays: a later prompt that goes
on from the answer reads at most so many again. A copy reads and writes what a step reads and
writes, so with pages of 16 these cost a sixty-fourth of what the states cost in steps."""


@dataclass(slots=True)
class _Rows:
    """Rows of sequences that each have one, with their slots."""

    rows: list[int]
    slots: list[int]


class RecurrentRunner:
    """The states of a model's steps. `page_size`: snapshots are taken where pages end; None: no
    snapshots are wanted."""

    def __init__(self, stateful: Stateful, pool: StatePool, page_size: int | None) -> None:
        self.pool = pool
        self._stateful = stateful
        self._every = None if page_size is None else EVERY_PAGES * page_size
        self._copies: list[tuple[int, int]] = []

    @property
    def attends(self) -> bool:
        """Whether any layer has keys and values."""
        return bool(self._stateful.numbers)

    def begin(self, chunks: Sequence[Chunk]) -> StepStates:
        """The states of a step, in parts: first all sequences that have one row and states."""
        self._copies = []
        single = _Rows([], [])
        parts: list[Part] = []
        row = 0
        for chunk in chunks:
            state = _state(chunk)
            slot = state.hold()
            if chunk.count == 1 and state.length:
                self._take_copy(chunk, state, slot)
                single.rows.append(row)
                single.slots.append(slot)
            elif chunk.drafted:
                rows = slice(row, row + chunk.count)
                parts.append(_part(rows, state, slot, fresh=not state.length, draft=True))
            else:
                parts += self._cut(chunk, state, slot, row)
            row += chunk.count
        if single.rows:
            parts.insert(0, self._together(single))
        return StepStates(self.pool.store, parts, row)

    def attention(
        self, step: AttentionStep, states: StepStates
    ) -> tuple[AttentionStep, dict[str, StepStates]]:
        """The step as the model takes it: its attention, and the states by name of argument."""
        return self._stateful.numbered(step, states), {self._stateful.argument: states}

    def end(self, chunks: Sequence[Chunk]) -> None:
        """Note what has been read, and take the snapshots that are behind all rows."""
        for source, target in self._copies:
            self.pool.store.copy(source, target)
        for chunk in chunks:
            if not chunk.drafted:  # a form may leave nothing of a draft
                _state(chunk).length += chunk.count

    def read_drafts(self, chunks: Sequence[Chunk]) -> None:
        """Read the rows of drafts that were accepted; call it when the step is committed."""
        for chunk in chunks:
            state = _state(chunk)
            if state.drafted:
                read_kept(self.pool.store, state, chunk.context.computed - state.length)

    def _take_copy(self, chunk: Chunk, state: RecurrentState, slot: int) -> None:
        """Plan a snapshot behind a single row, where one is due."""
        length = state.length + 1
        due = self._every is not None and length % self._every == 0 and not chunk.context.in_slots
        if due or length in state.wanted:
            snapshot = state.begin_snapshot(length)
            if snapshot is not None:
                self._copies.append((slot, snapshot))

    def _cut(self, chunk: Chunk, state: RecurrentState, slot: int, row: int) -> list[Part]:
        """The rows of a chunk, cut where snapshots are wanted."""
        parts: list[Part] = []
        first, last = state.length, state.length + chunk.count
        offset = row - first
        for at in [*state.points(first, last), last]:
            if at > first:
                snapshot = state.begin_snapshot(at) if at in state.wanted else None
                rows = slice(offset + first, offset + at)
                parts.append(_part(rows, state, slot, fresh=first == 0, snapshot=snapshot))
                first = at
        return parts

    def _together(self, single: _Rows) -> Part:
        first, count = single.rows[0], len(single.rows)
        consecutive = single.rows[-1] - first == count - 1
        return Part(
            rows=slice(first, first + count)
            if consecutive
            else self.pool.store.tensor(single.rows),
            count=1,
            slots=single.slots,
            fresh=False,
        )


def recurrent_runner(
    settings: CacheSettings,
    stateful: Stateful | None,
    device: torch.device,
    *,
    max_running: int,
    step_bytes: int,
) -> tuple[RecurrentRunner | None, int]:
    """The states of a model, and how many sequences can run at once; None: it has no states.

    `step_bytes`: memory of a step besides weights and cache, if measured; else 0.

    Raises:
        ConfigurationError: there is no memory for the states of one sequence.
    """
    if stateful is None:
        return None, max_running
    size = slot_bytes(stateful.shapes)
    running, slots = state_slots(
        settings, size, device=device, max_running=max_running, step_bytes=step_bytes
    )
    if running < max_running:
        logger.warning(
            "%d sequences run at once, not %d: the states of each take %d bytes (raise "
            "--kv-cache-memory for more)",
            running,
            max_running,
            size,
        )
    store = StateStore(stateful.shapes, slots=slots, device=device)
    page_size = settings.page_size if settings.prefix_cache else None
    return RecurrentRunner(stateful, StatePool(store, running=running), page_size), running


def _part(
    rows: slice,
    state: RecurrentState,
    slot: int,
    *,
    fresh: bool,
    snapshot: int | None = None,
    draft: bool = False,
) -> Part:
    return Part(
        rows=rows,
        count=rows.stop - rows.start,
        slots=[slot],
        fresh=fresh,
        snapshot=snapshot,
        draft=state if draft else None,
    )


def _state(chunk: Chunk) -> RecurrentState:
    assert chunk.context.recurrent is not None
    return chunk.context.recurrent
