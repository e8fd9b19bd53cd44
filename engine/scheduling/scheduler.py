"""The scheduler: continuous batching and chunked prefill, by choosing the rows of each step.

Each flow (`shares.py`) has its part of a step. Within it come first the decoding sequences (one row
a context), then prompts being read, in chunks, then waiting sequences (`waiting_line.py`), for
which `capacity.py` finds places and pages. Drafts take what is left. Of several sequences of an
owner that begin alike, one reads the beginning, and the others wait until they can take its pages
(`prompt_reuse.py`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ...kvcache.pages import PagePool
from ...kvcache.prefix import PrefixCache
from ...kvcache.state_pool import StatePool
from ..state.request import Flow
from ..state.sequence import Context, Sequence
from ..state.step import Chunk, Step
from .capacity import Room
from .prompt_reuse import PromptReuse
from .retained_kv import RetainedKV
from .shares import RowDemand, Shares
from .waiting_line import WaitingLine


@dataclass(slots=True, kw_only=True)
class _Budget:
    """Rows that a step has left, in total and for each flow."""

    rows: int
    of_flow: dict[Flow, int]

    def of(self, sequence: Sequence) -> int:
        """Rows that are left for this sequence."""
        return max(0, min(self.rows, self.of_flow.get(sequence.request.flow, 0)))

    def take(self, sequence: Sequence, rows: int) -> None:
        """Use up rows."""
        self.rows -= rows
        self.of_flow[sequence.request.flow] -= rows


class Scheduler:
    """Owns the waiting and the running sequences.

    `max_running`: sequences that run at once, each counted once for each of its contexts; choices
    that have yet to fork off count too, and no request may need more than this.
    `max_batch_tokens`: rows of one step. `chunk_tokens`: rows of one context in a step.
    `on_split`: makes sequences of choices that cannot fork off the first, for lack of places.
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
        on_split: Callable[[Sequence, tuple[int, ...]], list[Sequence]],
        retained_kv: RetainedKV | None = None,
        states: StatePool | None = None,
    ) -> None:
        assert max_batch_tokens >= max_running, "every decoding sequence needs its row"
        self._pool = pool
        self._max_batch_tokens = max_batch_tokens
        self._chunk_tokens = chunk_tokens
        self._clock = clock
        self._on_preempt = on_preempt
        self._on_split = on_split
        retained_kv = RetainedKV() if retained_kv is None else retained_kv
        self._shares = Shares()
        self._reuse = PromptReuse(prefix, retained_kv, states)
        self._room = Room(
            pool=pool,
            retained_kv=retained_kv,
            shares=self._shares,
            reuse=self._reuse,
            max_running=max_running,
            preempted=self._preempted,
            split=self._split,
        )
        self._waiting: dict[Flow, WaitingLine] = {}
        # Flows whose next sequence found no place or no pages, and no sequence has left since.
        self._refused: set[Flow] = set()
        self._steps = 0

    @property
    def running(self) -> list[Sequence]:
        """Sequences that hold pages, whether or not they have rows in a step."""
        return self._room.running

    @property
    def waiting(self) -> int:
        """Sequences that wait for their first step, or to be recomputed."""
        return sum(map(len, self._waiting.values()))

    @property
    def admits(self) -> bool:
        """Whether a waiting request could join the next step."""
        return any(flow not in self._refused for flow in self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether any sequence runs or waits."""
        return bool(self.running or self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that holds no pages."""
        self._shares.join(sequence)
        self._queue(sequence)

    def adopt(self, fork: Sequence) -> None:
        """Run a sequence that forked off a running one."""
        self._shares.join(fork)
        self.running.append(fork)

    def remove(self, gone: Iterable[Sequence]) -> None:
        """Remove running or waiting sequences and free what they hold; they leave in no other
        way."""
        ids: set[int] = set()
        for sequence in gone:
            ids.add(id(sequence))
            for context in sequence.contexts:
                context.free()
            self._shares.leave(sequence)
            line = self._waiting.get(sequence.request.flow)
            if line is not None and line.remove(sequence):
                self._close(line, sequence.request.flow)
        if ids:
            self._refused.clear()
            self._room.running = [s for s in self.running if id(s) not in ids]

    def all(self) -> list[Sequence]:
        """Every sequence, running or waiting."""
        return self.running + [s for line in self._waiting.values() for s in line.sequences]

    def schedule(self) -> Step:
        """Choose the next step's rows and reserve their pages."""
        step = Step()
        self._steps += 1
        if not self._shares.contended:
            self._shares.unbounded()
            budget = _Budget(rows=self._max_batch_tokens, of_flow={})
            for flow in self._shares.flows:
                budget.of_flow[flow] = self._max_batch_tokens
                self._run(step, budget, sorted(self.running, key=_reads))
                self._admit(step, budget, flow)
            self._add_drafts(step, budget)
            return step
        members = self._members()
        budget = _Budget(
            rows=self._max_batch_tokens,
            of_flow=self._shares.divide(self._demands(members), self._max_batch_tokens),
        )
        for flow in list(budget.of_flow):
            self._serve(step, budget, flow, members.get(flow, []))
        self._add_drafts(step, budget)
        return step

    def note(self, step: Step, seconds: float) -> None:
        """Record how long a step has taken."""
        rows: dict[Flow, int] = {}
        for chunk in step.chunks:
            flow = chunk.sequence.request.flow
            rows[flow] = rows.get(flow, 0) + chunk.count
        self._shares.observe(rows, seconds)

    def _members(self) -> dict[Flow, list[Sequence]]:
        """Running sequences by flow; those come first whose last rows are longest ago."""
        members: dict[Flow, list[Sequence]] = {}
        for sequence in sorted(self.running, key=lambda s: s.served):
            members.setdefault(sequence.request.flow, []).append(sequence)
        return members

    def _demands(self, members: dict[Flow, list[Sequence]]) -> dict[Flow, RowDemand]:
        """Rows that each flow could use, also for waiting sequences that could be admitted."""
        demands: dict[Flow, RowDemand] = {}
        for flow in self._shares.flows:
            demand = demands[flow] = RowDemand()
            for sequence in members.get(flow, []):
                if sequence.decodes:
                    demand.decodes = True
                    drafted = 0 if sequence.draft is None else len(sequence.draft.tokens)
                    demand.rows += (1 + drafted) * len(sequence.contexts)
                else:
                    demand.rows += sum(context.remaining for context in sequence.contexts)
            if flow in self._waiting:
                demand.rows += 1 if flow in self._refused else self._waiting[flow].tokens
            demand.rows = min(demand.rows, self._max_batch_tokens)
        return demands

    def _serve(self, step: Step, budget: _Budget, flow: Flow, members: list[Sequence]) -> None:
        """Schedule one of several flows: decoding leaves up to half of its rows to its prompts.

        A single row goes to either of them in turn.
        """
        line = self._waiting.get(flow)
        decoding = [s for s in members if s.decodes]
        reading = [s for s in members if not s.decodes]
        granted = budget.of_flow[flow]
        reserved = 0
        if reading or (line is not None and flow not in self._refused):
            prompts = sum(s.remaining for s in reading) + (0 if line is None else line.tokens)
            reserved = min(prompts, (granted + self._steps % 2) // 2) if decoding else 0
        budget.of_flow[flow] -= reserved
        self._run(step, budget, decoding)
        budget.of_flow[flow] += reserved
        self._run(step, budget, reading)
        self._admit(step, budget, flow)
        self._run(step, budget, [s for s in decoding if s.served != self._steps])

    def _run(self, step: Step, budget: _Budget, sequences: list[Sequence]) -> None:
        """Schedule rows of running sequences, as many as their flow's budget allows."""
        for sequence in sequences:
            if sequence in step.preempted:
                continue
            left = budget.of(sequence)
            if left > 0:
                # All contexts have their rows together, which a small part may never allow.
                left = min(budget.rows, max(left, len(sequence.contexts)))
            chunks = self._chunks(sequence, left)
            if chunks and self._room.reserve(step, sequence, chunks):
                sequence.served = self._steps
                step.chunks += chunks
                budget.take(sequence, sum(chunk.count for chunk in chunks))

    def _chunks(self, sequence: Sequence, budget: int) -> list[Chunk]:
        """The sequence's rows, as many as `budget` allows."""
        if not sequence.other_contexts:
            count = _whole(sequence, min(sequence.computable, budget, self._chunk_tokens))
            decodes = count == sequence.remaining
            return [Chunk(sequence=sequence, context=sequence, count=count, decodes=decodes)][
                :count
            ]
        counts = [context.computable for context in sequence.contexts]
        decodes = max(counts) <= self._chunk_tokens and sum(counts) <= budget
        if not decodes or any(
            context.computable < context.remaining for context in sequence.contexts
        ):
            # They get their next token together: no context reads its last token before that step.
            decodes, left = False, budget
            for i, context in enumerate(sequence.contexts):
                most = min(context.computable, context.remaining - 1, left, self._chunk_tokens)
                counts[i] = _whole(context, most)
                left -= counts[i]
        return [
            Chunk(sequence=sequence, context=context, count=count, decodes=decodes)
            for count, context in zip(counts, sequence.contexts, strict=True)
            if count > 0
        ]

    def _add_drafts(self, step: Step, budget: _Budget) -> None:
        """Add drafts where rows and pages are left; they preempt no sequence."""
        drafting = [chunk for chunk in step.chunks if chunk.sequence.draft is not None]
        for chunk in drafting:
            sequence, draft = chunk.sequence, chunk.sequence.draft
            if chunk.context is not sequence or draft is None:
                continue
            size = len(draft.tokens)
            missing = sum(
                context.table.pages_missing(context.computed + 1 + size)
                for context in sequence.contexts
            )
            rows = size * len(sequence.contexts)
            if rows > budget.of(sequence) or missing > self._pool.available:
                sequence.draft = None
                continue
            budget.take(sequence, rows)
            for each in drafting:
                if each.sequence is sequence:
                    copy = each.context.table.extend(each.context.computed + 1 + size)
                    assert copy is None, "the last page is its own since its row was reserved"
                    each.count += size
                    each.draft = draft

    def _admit(self, step: Step, budget: _Budget, flow: Flow) -> None:
        """Let waiting sequences of a flow run while rows, places and pages last."""
        line = self._waiting.get(flow)
        if line is None or step.preempted:
            return
        passed: list[Sequence] = []
        while line and budget.of_flow[flow] > 0 and budget.rows > 0:
            sequence = line.pop()
            if self._reuse.is_read_by_another(sequence, self.running):
                passed.append(sequence)
                continue
            if not self._room.take_places(step, sequence) or not self._room.take_pages(
                step, sequence
            ):
                self._room.forget(sequence)
                passed.append(sequence)
                self._refused.add(flow)
                break
            chunks = self._chunks(sequence, budget.of(sequence))
            if not chunks:
                self._room.forget(sequence)
                passed.append(sequence)
                continue
            line.admitted(sequence)
            self._begin(step, sequence, chunks)
            budget.take(sequence, sum(chunk.count for chunk in chunks))
        for sequence in passed:
            line.push(sequence)
        self._close(line, flow)

    def _begin(self, step: Step, sequence: Sequence, chunks: list[Chunk]) -> None:
        """Move a sequence from the queue into the step, with its first rows."""
        step.restored += [b for b in sequence.contexts if b.swapped is not None]
        for chunk in chunks:
            chunk.copy = chunk.context.table.extend(chunk.context.computed + chunk.count)
        if sequence.first_scheduled_s is None:
            sequence.first_scheduled_s = self._clock()
            sequence.cached_tokens = sequence.computed
        self._reuse.count(sequence)
        sequence.served = self._steps
        self.running.append(sequence)
        step.chunks += chunks

    def _preempted(self, sequence: Sequence) -> None:
        self._on_preempt(sequence)
        self._room.forget(sequence)
        self._queue(sequence)

    def _split(self, sequence: Sequence, choices: tuple[int, ...]) -> None:
        for choice in self._on_split(sequence, choices):
            self.add(choice)

    def _queue(self, sequence: Sequence) -> None:
        flow = sequence.request.flow
        self._refused.discard(flow)
        if flow not in self._waiting:
            self._waiting[flow] = WaitingLine(self._max_batch_tokens)
        self._waiting[flow].push(sequence)

    def _close(self, line: WaitingLine, flow: Flow) -> None:
        if not line:
            self._waiting.pop(flow, None)


def _whole(context: Context, count: int) -> int:
    """About `count` rows of a context, so that rows of a picture that see each other stay together.

    It may be more than the step has left: a picture longer than that would never be read.
    """
    if context.pictures is None or count < 1:
        return count
    return context.pictures.whole(context.computed, count)


def _reads(sequence: Sequence) -> bool:
    return not sequence.decodes
