"""Which sequences run, and with how many rows, in the next step.

Order: those that decode (one row a context, and their drafts), then prompts being read, then those
that wait; within each by priority and arrival. When pages run out, the last in that order gives
its pages back and waits again (preemption by recomputation).

Two rules for requests that share much. Of several that begin alike one reads, and the others wait
until they can take its pages. Beside requests of others, searches have as many rows as those.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ..kvcache.pages import OutOfPages, PagePool
from ..kvcache.prefix import PrefixCache, Salt
from ..kvcache.table import PageTable
from .sequence import Branch, Sequence
from .shelf import Shelf
from .sparse import salt_of
from .step import Chunk, Step

_SEARCH_PART: Final = 16
"""Of a step's rows, the part that searches get beside others, however few those are."""


@dataclass(slots=True, kw_only=True)
class _Budget:
    """Rows that a step has left, `of_searches` among them for the parts of searches."""

    rows: int
    of_searches: int

    def of(self, sequence: Sequence) -> int:
        """Rows that are left for this one."""
        if sequence.request.part_of is None:
            return self.rows
        return min(self.rows, self.of_searches)

    def take(self, sequence: Sequence, rows: int) -> None:
        """Use up rows."""
        self.rows -= rows
        if sequence.request.part_of is not None:
            self.of_searches -= rows


class Scheduler:
    """Owns the waiting and the running sequences.

    `max_running`: sequences that run at once, each as often as it has contexts; choices that have
    yet to fork off count, and no request may need more than this.
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
        on_preempt: Callable[[Sequence], None] = lambda sequence: None,
        shelf: Shelf | None = None,
    ) -> None:
        assert max_batch_tokens >= max_running, "every decoding sequence needs its row"
        self._pool = pool
        self._prefix = prefix
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._chunk_tokens = chunk_tokens
        self._clock = clock
        self._on_preempt = on_preempt
        self._shelf = Shelf() if shelf is None else shelf
        self._waiting: list[tuple[tuple[int, int, int], Sequence]] = []
        self.running: list[Sequence] = []
        # Whether the first in the queue found no place or no pages, and nobody has left since.
        self._refused = False

    @property
    def waiting(self) -> int:
        """Sequences that wait for their first step, or to be recomputed."""
        return len(self._waiting)

    @property
    def admits(self) -> bool:
        """Whether somebody waits who might come in by now."""
        return bool(self._waiting) and not self._refused

    @property
    def has_work(self) -> bool:
        """Whether any sequence lives."""
        return bool(self.running or self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that holds no pages."""
        self._refused = False
        heapq.heappush(self._waiting, (sequence.key, sequence))

    def adopt(self, fork: Sequence) -> None:
        """Run a sequence that forked off a running one."""
        self.running.append(fork)

    def remove(self, gone: Iterable[Sequence]) -> None:
        """Forget sequences, wherever they are, and free their pages: the one place for it."""
        ids = {id(sequence) for sequence in gone}
        if not ids:
            return
        self._refused = False
        for sequence in self.all():
            if id(sequence) in ids:
                for branch in sequence.branches:
                    branch.table.free()
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
        decoding: list[Sequence] = []
        reading: list[Sequence] = []
        for sequence in self.running:
            (decoding if sequence.decodes else reading).append(sequence)
        budget = self._budget(decoding)
        stopped: set[int] = set()
        for sequence in decoding + reading:
            if id(sequence) in stopped:
                continue
            chunks = self._chunks(sequence, budget.of(sequence))
            if chunks and self._reserve(step, sequence, chunks, stopped):
                step.chunks += chunks
                budget.take(sequence, sum(chunk.count for chunk in chunks))
        if not step.preempted:
            self._admit(step, budget)
        self._add_drafts(step, budget)
        return step

    def _budget(self, decoding: list[Sequence]) -> "_Budget":
        """The step's rows. Searches slow others no more than as many of those would."""
        others = sum(s.request.part_of is None for s in decoding)
        least = self._max_batch_tokens // _SEARCH_PART
        contexts = max((len(s.branches) for s in decoding), default=1)
        searches = max(others, least, contexts) if others else self._max_batch_tokens
        return _Budget(rows=self._max_batch_tokens, of_searches=searches)

    def _chunks(self, sequence: Sequence, budget: int) -> list[Chunk]:
        """The sequence's rows, as many as `budget` allows."""
        if not sequence.others:
            count = min(sequence.remaining, budget, self._chunk_tokens)
            decodes = count == sequence.remaining
            return [Chunk(sequence=sequence, branch=sequence, count=count, decodes=decodes)][:count]
        counts = [branch.remaining for branch in sequence.branches]
        decodes = max(counts) <= self._chunk_tokens and sum(counts) <= budget
        if not decodes:
            # They get their next token together: none reads its last one before the others.
            left = budget
            for i, remaining in enumerate(counts):
                counts[i] = min(remaining - 1, left, self._chunk_tokens)
                left -= counts[i]
        return [
            Chunk(sequence=sequence, branch=branch, count=count, decodes=decodes)
            for count, branch in zip(counts, sequence.branches, strict=True)
            if count > 0
        ]

    def _add_drafts(self, step: Step, budget: "_Budget") -> None:
        """Guesses take what rows and pages are left; they push nobody out."""
        drafting = [chunk for chunk in step.chunks if chunk.sequence.draft is not None]
        for chunk in drafting:
            sequence, draft = chunk.sequence, chunk.sequence.draft
            if chunk.branch is not sequence or draft is None:
                continue
            size = len(draft.tokens)
            missing = sum(
                branch.table.pages_missing(branch.computed + 1 + size)
                for branch in sequence.branches
            )
            rows = size * len(sequence.branches)
            if rows > budget.of(sequence) or missing > self._pool.available:
                sequence.draft = None
                continue
            budget.take(sequence, rows)
            for of_branch in drafting:
                if of_branch.sequence is sequence:
                    copy = of_branch.branch.table.extend(of_branch.branch.computed + 1 + size)
                    assert copy is None, "the last page is its own since its row was reserved"
                    of_branch.count += size
                    of_branch.draft = draft

    def _admit(self, step: Step, budget: "_Budget") -> None:
        """Let waiting sequences run while rows, places and pages last."""
        places = self._max_running - sum(s.places for s in self.running)
        passed: list[tuple[tuple[int, int, int], Sequence]] = []
        while self._waiting and budget.rows > 0:
            _, sequence = self._waiting[0]
            if sequence.places > places:
                self._refused = True
                break
            if budget.of(sequence) <= 0 or self._is_read_by_another(sequence):
                passed.append(heapq.heappop(self._waiting))
                continue
            if not self._take_back(sequence):
                self._forget(sequence)
                self._refused = True
                break
            chunks = self._chunks(sequence, budget.of(sequence))
            if not chunks:
                self._forget(sequence)
                passed.append(heapq.heappop(self._waiting))
                continue
            heapq.heappop(self._waiting)
            step.restored += [b for b in sequence.branches if b.swapped is not None]
            for chunk in chunks:
                chunk.copy = chunk.branch.table.extend(chunk.branch.computed + chunk.count)
            if sequence.first_scheduled_s is None:
                sequence.first_scheduled_s = self._clock()
                sequence.cached_tokens = sequence.computed
            for branch in sequence.branches:
                if branch.swapped is None:
                    self._prefix.count(queried=len(branch.tokens), hit=branch.computed)
            self.running.append(sequence)
            step.chunks += chunks
            places -= sequence.places
            budget.take(sequence, sum(chunk.count for chunk in chunks))
        for item in passed:
            heapq.heappush(self._waiting, item)

    def _is_read_by_another(self, sequence: Sequence) -> bool:
        """Whether a running sequence reads what this one begins with, so that a wait pays."""
        if not self._prefix.enabled:
            return False
        if sequence.awaits is not None:
            reader, length = sequence.awaits
            if reader.table.pages and reader.computed < length:
                return True
        sequence.awaits = self._reader_for(sequence)
        return sequence.awaits is not None

    def _reader_for(self, sequence: Sequence) -> tuple[Sequence, int] | None:
        """A sequence that reads whole pages of the same beginning, and how many tokens of it."""
        usable = min(self._usable(sequence, sequence), sequence.shareable)
        found, length = None, 0
        for reader in self.running:
            if reader.remaining <= 1 or reader.keeping is not None:
                continue
            if _salt(reader) != _salt(sequence):
                continue
            if reader.request.part_of is not None and sequence.request.part_of is None:
                continue  # searches may be slow
            known = min(usable, reader.shareable)
            shared = self._prefix.shared(reader.tokens, sequence.tokens[:known])
            if shared > max(length, reader.computed):
                found, length = reader, shared
        if found is None:
            return None
        cached = self._prefix.cached(sequence.tokens[:length], _salt(sequence))
        return None if cached >= length else (found, length)

    def _take_back(self, sequence: Sequence) -> bool:
        """What is left of a sequence's keys: cached pages, or those that were swapped out.

        False: there is no room for it.
        """
        choices = 1 + len(sequence.unborn)
        for context, branch in enumerate(sequence.branches):
            if branch.swapped is None:
                self._adopt_cached(sequence, branch, context)
        # Room for all that it has to read, or it would soon push others (or itself) out.
        missing = 0
        for branch in sequence.branches:
            if isinstance(branch.table, PageTable):
                missing += branch.table.pages_missing(len(branch.tokens))
            if self._evicts_at_once(branch):
                missing += branch.slot_pages * choices
        while missing > self._pool.available:
            if not self._shelf.release_oldest():
                return False
        for branch in sequence.branches:
            if self._evicts_at_once(branch):
                branch.table.reserve(branch.slot_pages * choices)
        return True

    def _evicts_at_once(self, branch: Branch) -> bool:
        """Whether it needs the pages of its slots as soon as all its tokens have been read."""
        keeping = branch.keeping
        return keeping is not None and (
            branch.swapped is not None or keeping.outgrows(len(branch.tokens) - keeping.length)
        )

    def _adopt_cached(self, sequence: Sequence, branch: Branch, context: int) -> None:
        """Take what is cached of a context's tokens, as far as it is of use."""
        assert isinstance(branch.table, PageTable)
        usable = self._usable(sequence, branch)
        shareable = min(usable, branch.shareable)
        branch.computed = branch.table.adopt_prefix(branch.tokens[:shareable])
        if branch.keeping is not None:
            branch.keeping.reset(branch.computed)
        elif sequence.request.source is not None:
            self._shelf.adopt(sequence.request.source, context, branch, usable)

    def _usable(self, sequence: Sequence, branch: Branch) -> int:
        """How many of a context's first tokens need not be computed where they are cached.

        The last token's logits are needed, and those of all that prompt logprobs are asked for.
        """
        usable = len(branch.tokens) - 1
        if sequence.request.prompt_logprobs is not None and branch is sequence:
            usable = min(usable, sequence.request.scored_from - 1)
        if branch.keeping is not None and branch.keeping.retention.score is not None:
            # Of cached tokens nobody knows what attention they paid: those that vote are computed.
            votes = branch.keeping.retention.score_window
            usable = 0 if votes is None else max(0, min(usable, branch.prompt_length - votes))
        return usable

    def _reserve(
        self, step: Step, sequence: Sequence, chunks: list[Chunk], stopped: set[int]
    ) -> bool:
        """Pages for the rows, preempting from the end of the order if need be.

        False: the sequence itself was preempted.
        """
        for chunk in chunks:
            while True:
                try:
                    self._hold_slots(chunk)
                    chunk.copy = chunk.branch.table.extend(chunk.branch.computed + chunk.count)
                    break
                except OutOfPages:
                    if self._shelf.release_oldest():
                        continue
                    running = (s for s in self.running if id(s) not in stopped)
                    victim = max(running, key=lambda s: s.key)
                    self._preempt(step, victim)
                    stopped.add(id(victim))
                    if victim is sequence:
                        return False
        return True

    def _hold_slots(self, chunk: Chunk) -> None:
        """Pages for what survives, where the first eviction follows these rows.

        Raises:
            OutOfPages: nothing has changed.
        """
        branch, table = chunk.branch, chunk.branch.table
        if branch.keeping is None or not isinstance(table, PageTable) or table.reserved:
            return
        if branch.keeping.outgrows(chunk.count):
            table.reserve(branch.slot_pages)

    def _preempt(self, step: Step, victim: Sequence) -> None:
        step.chunks = [chunk for chunk in step.chunks if chunk.sequence is not victim]
        step.preempted.append(victim)
        self._on_preempt(victim)
        self._forget(victim)
        self.running.remove(victim)
        self.add(victim)

    def _forget(self, sequence: Sequence) -> None:
        """Give back all pages; everything has to be computed again."""
        sequence.draft = None
        for branch in sequence.branches:
            branch.table.free()
            if branch.reading is not None:
                branch.reading.restart()
            if branch.swapped is None:
                branch.computed = 0


def _salt(sequence: Sequence) -> Salt:
    """Within which its prefix is shared."""
    return salt_of(sequence.request, sequence.reading)
