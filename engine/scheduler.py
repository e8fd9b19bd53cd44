"""Which sequences run, and with how many rows, in the next step.

Order: those that decode (one row a context, and their drafts), then prompts being read, then those
that wait; within each by priority and arrival. When pages run out, the last in that order gives
its pages back and waits again (preemption by recomputation).
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..decoding.drafting.draft import Draft
from ..kvcache.keeping import Attended
from ..kvcache.pages import OutOfPages, PagePool
from ..kvcache.prefix import PrefixCache
from ..kvcache.table import PageCopy, PageTable
from .sequence import Branch, Sequence


@dataclass(slots=True, kw_only=True)
class Chunk:
    """`count` rows of one context of a sequence: its tokens from `branch.computed` on.

    `decodes`: its newest token is among the rows, and those of the sequence's other contexts too,
    so that the sequence gets its next token. `draft`: the last rows are its guesses.
    `copy`: a page to copy before the rows are written. `attended`: what the rows attended to, where
    the cache policy asks.
    """

    sequence: Sequence
    branch: Branch
    count: int
    decodes: bool
    draft: Draft | None = None
    copy: PageCopy | None = None
    attended: Attended | None = None

    @property
    def drafted(self) -> int:
        """How many rows are guesses."""
        return len(self.draft.tokens) if self.draft is not None else 0

    @property
    def apart(self) -> bool:
        """Whether its attention is not that of all others: keys are in slots, or are credited."""
        keeping = self.branch.keeping
        if keeping is None:
            return False
        return keeping.in_slots or keeping.counts(self.branch.prompt_length, self.count)


@dataclass(slots=True, kw_only=True)
class Step:
    """One ragged batch: what the runner computes and the engine then commits."""

    chunks: list[Chunk] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    restored: list[Branch] = field(default_factory=list)

    @property
    def copies(self) -> list[PageCopy]:
        """Pages to copy before anything is written."""
        return [chunk.copy for chunk in self.chunks if chunk.copy is not None]

    @property
    def only_decodes(self) -> bool:
        """Whether no row reads a prompt."""
        return all(chunk.count == 1 + chunk.drafted for chunk in self.chunks)

    @property
    def drafts(self) -> int:
        """Contexts in which a draft is verified."""
        return sum(chunk.draft is not None for chunk in self.chunks)

    @property
    def guesses(self) -> int:
        """Rows that are guesses, in all contexts."""
        return sum(chunk.drafted for chunk in self.chunks)

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return sum(chunk.count for chunk in self.chunks)


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
    ) -> None:
        assert max_batch_tokens >= max_running, "every decoding sequence needs its row"
        self._pool = pool
        self._prefix = prefix
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._chunk_tokens = chunk_tokens
        self._clock = clock
        self._on_preempt = on_preempt
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
        budget = self._max_batch_tokens
        decoding: list[Sequence] = []
        reading: list[Sequence] = []
        for sequence in self.running:
            (decoding if sequence.decodes else reading).append(sequence)
        stopped: set[int] = set()
        for sequence in decoding + reading:
            if id(sequence) in stopped:
                continue
            chunks = self._chunks(sequence, budget)
            if chunks and self._reserve(step, sequence, chunks, stopped):
                step.chunks += chunks
                budget -= sum(chunk.count for chunk in chunks)
        if not step.preempted:
            self._admit(step, budget)
        self._add_drafts(step)
        return step

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

    def _add_drafts(self, step: Step) -> None:
        """Guesses take what rows and pages are left; they push nobody out."""
        drafting = [chunk for chunk in step.chunks if chunk.sequence.draft is not None]
        budget = self._max_batch_tokens - step.rows if drafting else 0
        for chunk in drafting:
            sequence, draft = chunk.sequence, chunk.sequence.draft
            if chunk.branch is not sequence or draft is None:
                continue
            size = len(draft.tokens)
            missing = sum(
                branch.table.pages_missing(branch.computed + 1 + size)
                for branch in sequence.branches
            )
            if size * len(sequence.branches) > budget or missing > self._pool.available:
                sequence.draft = None
                continue
            budget -= size * len(sequence.branches)
            for of_branch in drafting:
                if of_branch.sequence is sequence:
                    copy = of_branch.branch.table.extend(of_branch.branch.computed + 1 + size)
                    assert copy is None, "the last page is its own since its row was reserved"
                    of_branch.count += size
                    of_branch.draft = draft

    def _admit(self, step: Step, budget: int) -> None:
        """Let waiting sequences run while rows, places and pages last."""
        places = self._max_running - sum(s.places for s in self.running)
        while self._waiting and budget > 0:
            _, sequence = self._waiting[0]
            if sequence.places > places:
                return
            fits = self._take_back(sequence)
            chunks = self._chunks(sequence, budget) if fits else []
            if not chunks:
                self._forget(sequence)
                return
            heapq.heappop(self._waiting)
            step.restored += [b for b in sequence.branches if b.swapped is not None]
            for chunk in chunks:
                copy = chunk.branch.table.extend(chunk.branch.computed + chunk.count)
                assert copy is None, "cached pages are whole pages"
            if sequence.first_scheduled_s is None:
                sequence.first_scheduled_s = self._clock()
                sequence.cached_tokens = sequence.computed
            for branch in sequence.branches:
                if branch.swapped is None:
                    self._prefix.count(queried=len(branch.tokens), hit=branch.computed)
            self.running.append(sequence)
            step.chunks += chunks
            places -= sequence.places
            budget -= sum(chunk.count for chunk in chunks)

    def _take_back(self, sequence: Sequence) -> bool:
        """What is left of a sequence's keys: cached pages, or those that were swapped out.

        False: there is no room for it.
        """
        choices = 1 + len(sequence.unborn)
        for branch in sequence.branches:
            if branch.swapped is None:
                branch.computed = self._adopt_cached(sequence, branch)
                if branch.keeping is not None:
                    branch.keeping.reset(branch.computed)
        # Room for all that it has to read, or it would soon push others (or itself) out.
        missing = 0
        for branch in sequence.branches:
            if isinstance(branch.table, PageTable):
                missing += branch.table.pages_missing(len(branch.tokens))
            if self._evicts_at_once(branch):
                missing += branch.slot_pages * choices
        if missing > self._pool.available:
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

    def _adopt_cached(self, sequence: Sequence, branch: Branch) -> int:
        """Take cached pages for all but the last token, whose logits have to be computed."""
        if sequence.request.prompt_logprobs is not None and branch is sequence:
            return 0  # every prompt row has to be computed
        assert isinstance(branch.table, PageTable)
        usable = len(branch.tokens) - 1
        if branch.keeping is not None and branch.keeping.retention.score is not None:
            # Of cached tokens nobody knows what attention they paid: those that vote are computed.
            votes = branch.keeping.retention.score_window
            usable = 0 if votes is None else max(0, min(usable, branch.prompt_length - votes))
        return branch.table.adopt_prefix(branch.tokens[:usable])

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
            if branch.swapped is None:
                branch.computed = 0
