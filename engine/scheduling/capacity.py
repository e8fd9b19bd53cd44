"""Room to run: places and pages of running sequences, and preemption of some to admit others.

Among several flows, one may take from the flow that holds most by its weight, as long as that flow
then still holds no less by its weight. Of that flow, the last sequence by priority and arrival
frees its pages and waits again (preemption by recomputation). A request of many choices takes the
places that there are, and its other choices wait.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from ...kvcache.pages import OutOfPages, PagePool
from ..state.request import Flow
from ..state.sequence import Context, Sequence
from ..state.step import Chunk, Step
from .prompt_reuse import PromptReuse
from .retained_kv import RetainedKV
from .shares import Shares


@dataclass(slots=True, kw_only=True)
class Room:
    """Owns the running sequences. `max_running`: places, one for each context of each choice.

    `preempted`: called with a sequence that has to wait again. `split`: called with a sequence and
    those of its choices that cannot fork off it for lack of places.
    """

    pool: PagePool
    retained_kv: RetainedKV
    shares: Shares
    reuse: PromptReuse
    max_running: int
    preempted: Callable[[Sequence], None]
    split: Callable[[Sequence, tuple[int, ...]], None]
    running: list[Sequence] = field(default_factory=list[Sequence])

    def take_places(self, step: Step, sequence: Sequence) -> bool:
        """Find places for a sequence, or for as many of its choices as fit; False: for none."""
        free = self.max_running - sum(s.num_sequences for s in self.running)
        if sequence.num_sequences <= free:
            return True
        if not self.shares.contended:
            return False
        contexts = len(sequence.contexts)
        while free < contexts:
            freed = self._yield_places(step, sequence)
            if not freed:
                return False
            free += freed
        if sequence.num_sequences > free:
            admitted = free // contexts - 1
            later = sequence.pending_choices[admitted:]
            sequence.pending_choices = sequence.pending_choices[:admitted]
            self.split(sequence, later)
        return True

    def _yield_places(self, step: Step, sequence: Sequence) -> int:
        """Free places of the flow that holds most, unless it would then hold less than this one.

        Returns how many.
        """
        held = self._held(lambda s: s.num_sequences)
        own, contexts = sequence.request.flow, len(sequence.contexts)
        victim = self._last_of_largest(held, own)
        if victim is None:
            return 0
        flow, freed = victim.request.flow, len(victim.contexts)
        after = (held[flow] - freed) / self.shares.weight(flow)
        if after < (held.get(own, 0) + contexts) / self.shares.weight(own):
            return 0
        if victim.num_sequences > freed:
            later, victim.pending_choices = victim.pending_choices[-1:], victim.pending_choices[:-1]
            self.split(victim, later)
        else:
            self._preempt(step, victim)
        return freed

    def _yield_pages(self, step: Step, sequence: Sequence, missing: int) -> bool:
        """As `_yield_places`, for pages; returns whether any were freed."""
        held = self._held(_pages)
        own = sequence.request.flow
        victim = self._last_of_largest(held, own)
        if victim is None:
            return False
        flow = victim.request.flow
        after = (held[flow] - _pages(victim)) / self.shares.weight(flow)
        if after < (held.get(own, 0) + missing) / self.shares.weight(own):
            return False
        self._preempt(step, victim)
        return True

    def _held(self, count: Callable[[Sequence], int]) -> dict[Flow, int]:
        """What each flow holds: the sum of `count` over its running sequences."""
        held: dict[Flow, int] = {}
        for sequence in self.running:
            flow = sequence.request.flow
            held[flow] = held.get(flow, 0) + count(sequence)
        return held

    def _last_of_largest(self, held: dict[Flow, int], but: Flow | None = None) -> Sequence | None:
        """The last sequence (`Sequence.key`) of the flow, except `but`, that holds most by its
        weight."""
        flows = [flow for flow in held if flow != but]
        if not flows:
            return None
        largest = max(flows, key=lambda flow: held[flow] / self.shares.weight(flow))
        return max((s for s in self.running if s.request.flow == largest), key=lambda s: s.key)

    def take_pages(self, step: Step, sequence: Sequence) -> bool:
        """Adopt a sequence's cached pages, and see that the pool has those that it still needs.

        False: there is no room for it.
        """
        choices = 1 + len(sequence.pending_choices)
        self.reuse.adopt(sequence)
        # Room for all that it has to read, or others (or itself) would soon be preempted for it.
        missing = 0
        for context in sequence.contexts:
            missing += context.table.pages_missing(len(context.tokens))
            if self._evicts_at_once(context):
                missing += context.slot_pages * choices
        while missing > self.pool.available:
            if self.retained_kv.release_oldest():
                continue
            short = missing - self.pool.available
            if not self.shares.contended or not self._yield_pages(step, sequence, short):
                return False
        for context in sequence.contexts:
            if self._evicts_at_once(context):
                context.table.reserve(context.slot_pages * choices)
        return True

    def reserve(self, step: Step, sequence: Sequence, chunks: list[Chunk]) -> bool:
        """Reserve pages for the rows, preempting sequences of the largest flow if need be.

        False: the sequence itself was preempted.
        """
        for chunk in chunks:
            while True:
                try:
                    self._hold_slots(chunk)
                    chunk.copy = chunk.context.table.extend(chunk.context.computed + chunk.count)
                    break
                except OutOfPages:
                    if self.retained_kv.release_oldest():
                        continue
                    victim = self._last_of_largest(self._held(_pages))
                    assert victim is not None, "the sequence itself runs"
                    self._preempt(step, victim)
                    if victim is sequence:
                        return False
        return True

    def _hold_slots(self, chunk: Chunk) -> None:
        """Reserve pages for the keys that survive, if the first eviction follows these rows.

        Raises:
            OutOfPages: nothing has changed.
        """
        context = chunk.context
        if context.eviction_state is None or not context.eviction_state.outgrows(chunk.count):
            return
        if not context.page_table.reserved:
            context.page_table.reserve(context.slot_pages)

    def _preempt(self, step: Step, victim: Sequence) -> None:
        step.chunks = [chunk for chunk in step.chunks if chunk.sequence is not victim]
        # It may have been admitted in this very step, for another flow to take its pages.
        gone = set(map(id, victim.contexts))
        step.restored = [context for context in step.restored if id(context) not in gone]
        step.preempted.append(victim)
        self.preempted(victim)
        self.running.remove(victim)

    def forget(self, sequence: Sequence) -> None:
        """Free all pages and states; all that was not swapped out has to be computed again."""
        sequence.draft = None
        for context in sequence.contexts:
            context.table.free()
            if context.recurrent is not None and context.swapped is None:
                context.recurrent.free()
            if context.sparse_prefill is not None:
                context.sparse_prefill.restart()
            if context.swapped is None:
                context.computed = 0
                if context.thought is not None:
                    context.thought.dropped = False

    def _evicts_at_once(self, context: Context) -> bool:
        """Whether it needs the pages of its slots at the latest when its tokens have been read."""
        eviction_state = context.eviction_state
        return eviction_state is not None and (
            context.swapped is not None
            or eviction_state.outgrows(len(context.tokens) - eviction_state.length)
        )


def _pages(sequence: Sequence) -> int:
    """Pages that a sequence holds, shared ones included."""
    return sum(len(context.table.pages) for context in sequence.contexts)
