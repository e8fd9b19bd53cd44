"""Which sequences run, and with how many rows, in the next step.

Order: those that decode (one row a context, and their drafts), then prompts being read, then those
that wait; within each by priority and arrival. When pages run out, the last in that order gives
its pages back and waits again (preemption by recomputation).
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..decoding.drafting.draft import Draft
from ..kvcache.pages import OutOfPages, PagePool
from ..kvcache.prefix import PrefixCache
from ..kvcache.table import PageCopy
from .sequence import Branch, Sequence


@dataclass(slots=True, kw_only=True)
class Chunk:
    """`count` rows of one context of a sequence: its tokens from `branch.computed` on.

    `decodes`: its newest token is among the rows, and those of the sequence's other contexts too,
    so that the sequence gets its next token. `draft`: the last rows are its guesses.
    `copy`: a page to copy before the rows are written.
    """

    sequence: Sequence
    branch: Branch
    count: int
    decodes: bool
    draft: Draft | None = None
    copy: PageCopy | None = None

    @property
    def drafted(self) -> int:
        """How many rows are guesses."""
        return len(self.draft.tokens) if self.draft is not None else 0


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
    def only_decodes(self) -> bool:
        """Whether no row reads a prompt."""
        return all(chunk.count == 1 + chunk.drafted for chunk in self.chunks)

    @property
    def drafts(self) -> int:
        """Contexts in which a draft is verified."""
        return sum(chunk.draft is not None for chunk in self.chunks)

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
        decoding = [s for s in self.running if s.decodes]
        reading = [s for s in self.running if not s.decodes]
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
        return step

    def _chunks(self, sequence: Sequence, budget: int) -> list[Chunk]:
        """The sequence's rows: as many as `budget` allows, its draft only where all of it fits."""
        if not sequence.others and sequence.draft is None:
            count = min(sequence.remaining, budget, self._chunk_tokens)
            decodes = count == sequence.remaining
            return [Chunk(sequence=sequence, branch=sequence, count=count, decodes=decodes)][:count]
        counts: list[int] = []
        left = budget
        for branch in sequence.branches:
            counts.append(min(branch.remaining, left, self._chunk_tokens))
            left -= counts[-1]
        decodes = all(
            count == branch.remaining
            for count, branch in zip(counts, sequence.branches, strict=True)
        )
        draft = sequence.draft
        if draft is not None:
            extra = len(draft.tokens) * len(counts)
            if not decodes or extra > left:
                draft = None
            else:
                counts = [count + len(draft.tokens) for count in counts]
        if not decodes:
            # They get their next token together: none reads its last one before the others.
            pairs = zip(counts, sequence.branches, strict=True)
            counts = [min(count, branch.remaining - 1) for count, branch in pairs]
        return [
            Chunk(sequence=sequence, branch=branch, count=count, decodes=decodes, draft=draft)
            for count, branch in zip(counts, sequence.branches, strict=True)
            if count > 0
        ]

    def _admit(self, step: Step, budget: int) -> None:
        """Let waiting sequences run while rows, places and pages last."""
        places = self._max_running - sum(s.places for s in self.running)
        while self._waiting and budget > 0:
            _, sequence = self._waiting[0]
            if sequence.places > places:
                return
            for branch in sequence.branches:
                branch.computed = self._adopt_cached(sequence, branch)
            # Room for all that it has to read, or it would soon push others (or itself) out.
            missing = sum(b.table.pages_missing(len(b.tokens)) for b in sequence.branches)
            chunks = self._chunks(sequence, budget) if missing <= self._pool.available else []
            if not chunks:
                self._forget(sequence)
                return
            heapq.heappop(self._waiting)
            for chunk in chunks:
                copy = chunk.branch.table.extend(chunk.branch.computed + chunk.count)
                assert copy is None, "cached pages are whole pages"
            if sequence.first_scheduled_s is None:
                sequence.first_scheduled_s = self._clock()
                sequence.cached_tokens = sequence.computed
            for branch in sequence.branches:
                self._prefix.count(queried=len(branch.tokens), hit=branch.computed)
            self.running.append(sequence)
            step.chunks += chunks
            places -= sequence.places
            budget -= sum(chunk.count for chunk in chunks)

    def _adopt_cached(self, sequence: Sequence, branch: Branch) -> int:
        """Take cached pages for all but the last token, whose logits have to be computed."""
        if sequence.request.prompt_logprobs is not None and branch is sequence:
            return 0  # every prompt row has to be computed
        return branch.table.adopt_prefix(branch.tokens[:-1])

    def _reserve(
        self, step: Step, sequence: Sequence, chunks: list[Chunk], stopped: set[int]
    ) -> bool:
        """Pages for the rows: without the draft if need be, then by preempting from the end.

        False: the sequence itself was preempted.
        """
        for chunk in chunks:
            while True:
                try:
                    copy = chunk.branch.table.extend(chunk.branch.computed + chunk.count)
                except OutOfPages:
                    if chunk.draft is not None:
                        _drop_draft(chunks)
                        continue
                    running = (s for s in self.running if id(s) not in stopped)
                    victim = max(running, key=lambda s: s.key)
                    self._preempt(step, victim)
                    stopped.add(id(victim))
                    if victim is sequence:
                        return False
                else:
                    chunk.copy = copy
                    break
        return True

    def _preempt(self, step: Step, victim: Sequence) -> None:
        step.chunks = [chunk for chunk in step.chunks if chunk.sequence is not victim]
        step.preempted.append(victim)
        self._forget(victim)
        self.running.remove(victim)
        self.add(victim)

    def _forget(self, sequence: Sequence) -> None:
        """Give back all pages; everything has to be computed again."""
        sequence.draft = None
        for branch in sequence.branches:
            branch.table.free()
            branch.computed = 0


def _drop_draft(chunks: list[Chunk]) -> None:
    for chunk in chunks:
        chunk.count -= chunk.drafted
        chunk.draft = None
