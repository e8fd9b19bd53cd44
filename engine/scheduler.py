"""Which sequences run, and with how many rows, in the next step.

Order: those that decode (one row each), then prompts being read, then those that wait; within
each by priority and arrival. When pages run out, the last in that order gives its pages back and
waits again (preemption by recomputation).
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..kvcache.pages import OutOfPages, PagePool
from ..kvcache.prefix import PrefixCache
from ..kvcache.table import PageCopy
from .sequence import Sequence


@dataclass(slots=True, kw_only=True)
class Chunk:
    """`count` rows of one sequence: its tokens from `sequence.computed` on.

    `copy`: a page to copy before the rows are written.
    """

    sequence: Sequence
    count: int
    copy: PageCopy | None = None

    @property
    def is_last(self) -> bool:
        """Whether the sequence's newest token is among the rows, so that it can decode."""
        return self.count == self.sequence.remaining


@dataclass(slots=True, kw_only=True)
class Step:
    """One ragged batch: what the runner computes and the engine then commits."""

    chunks: list[Chunk] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)

    @property
    def copies(self) -> list[PageCopy]:
        """Pages to copy before anything is written."""
        return [chunk.copy for chunk in self.chunks if chunk.copy is not None]

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return sum(chunk.count for chunk in self.chunks)


class Scheduler:
    """Owns the waiting and the running sequences.

    `max_running`: sequences that run at once; choices that have yet to fork off count, and no
    request may have more choices than this.
    `max_batch_tokens`: rows of one step. `chunk_tokens`: rows of one sequence in a step.
    """

    def __init__(
        self,
        pool: PagePool,
        prefix: PrefixCache,
        *,
        max_running: int,
        max_batch_tokens: int,
        chunk_tokens: int,
        clock: Callable[[], float],
    ) -> None:
        assert max_batch_tokens >= max_running, "every decoding sequence needs its row"
        self._pool = pool
        self._prefix = prefix
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._chunk_tokens = chunk_tokens
        self._clock = clock
        self._waiting: list[tuple[tuple[int, int, int], Sequence]] = []
        self.running: list[Sequence] = []

    @property
    def waiting(self) -> int:
        """Sequences that wait for their first step, or to be recomputed."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether any sequence lives."""
        return bool(self.running or self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that holds no pages."""
        heapq.heappush(self._waiting, (sequence.key, sequence))

    def adopt(self, fork: Sequence) -> None:
        """Run a sequence that forked off a running one."""
        self.running.append(fork)

    def remove(self, gone: Iterable[Sequence]) -> None:
        """Forget sequences, wherever they are, and free their pages: the one place for it."""
        ids = {id(sequence) for sequence in gone}
        if not ids:
            return
        for sequence in self.all():
            if id(sequence) in ids:
                sequence.table.free()
        self.running = [s for s in self.running if id(s) not in ids]
        if any(id(s) in ids for _, s in self._waiting):
            self._waiting = [item for item in self._waiting if id(item[1]) not in ids]
            heapq.heapify(self._waiting)

    def all(self) -> list[Sequence]:
        """Every sequence that lives."""
        return self.running + [sequence for _, sequence in self._waiting]

    def schedule(self) -> Step:
        """Choose the next step's rows and reserve their pages."""
        step = Step()
        budget = self._max_batch_tokens
        decoding = [s for s in self.running if s.remaining == 1]
        reading = [s for s in self.running if s.remaining > 1]
        stopped: set[int] = set()
        for sequence in decoding + reading:
            if budget == 0 or id(sequence) in stopped:
                continue
            count = min(sequence.remaining, budget, self._chunk_tokens)
            chunk = self._reserve(step, sequence, count, stopped)
            if chunk is not None:
                step.chunks.append(chunk)
                budget -= count
        if not step.preempted:
            self._admit(step, budget)
        return step

    def _admit(self, step: Step, budget: int) -> None:
        """Let waiting sequences run while rows, places and pages last."""
        places = self._max_running - sum(1 + len(s.unborn) for s in self.running)
        while self._waiting and budget > 0:
            _, sequence = self._waiting[0]
            if 1 + len(sequence.unborn) > places:
                return
            cached = self._adopt_cached(sequence)
            # Room for all that it has to read, or it would soon push others (or itself) out.
            if sequence.table.pages_missing(len(sequence.tokens)) > self._pool.available:
                sequence.table.free()
                return
            heapq.heappop(self._waiting)
            count = min(len(sequence.tokens) - cached, budget, self._chunk_tokens)
            copy = sequence.table.extend(cached + count)
            assert copy is None, "cached pages are whole pages"
            sequence.computed = cached
            if sequence.first_scheduled_s is None:
                sequence.first_scheduled_s = self._clock()
                sequence.cached_tokens = cached
            self._prefix.count(queried=len(sequence.tokens), hit=cached)
            self.running.append(sequence)
            step.chunks.append(Chunk(sequence=sequence, count=count))
            places -= 1 + len(sequence.unborn)
            budget -= count

    def _adopt_cached(self, sequence: Sequence) -> int:
        """Take cached pages for all but the last token, whose logits have to be computed."""
        if sequence.request.prompt_logprobs is not None:
            return 0  # every prompt row has to be computed
        return sequence.table.adopt_prefix(sequence.tokens[:-1])

    def _reserve(
        self, step: Step, sequence: Sequence, count: int, stopped: set[int]
    ) -> Chunk | None:
        """Pages for `count` more tokens, preempting from the end of the order if need be."""
        while True:
            try:
                copy = sequence.table.extend(sequence.computed + count)
            except OutOfPages:
                victim = max((s for s in self.running if id(s) not in stopped), key=lambda s: s.key)
                self._preempt(step, victim)
                stopped.add(id(victim))
                if victim is sequence:
                    return None
            else:
                return Chunk(sequence=sequence, count=count, copy=copy)

    def _preempt(self, step: Step, victim: Sequence) -> None:
        step.chunks = [chunk for chunk in step.chunks if chunk.sequence is not victim]
        step.preempted.append(victim)
        victim.table.free()
        victim.computed = 0
        self.running.remove(victim)
        self.add(victim)
