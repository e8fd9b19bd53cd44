"""The engine: `step()` is schedule, run, decode, commit. Synchronous; knows no thread, no text."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch

from ...decoding.base import Vocabulary
from ...decoding.gumbel import derive_seed
from ...decoding.pieces import Pieces
from ...kvcache.pages import PagePool
from ...kvcache.prefix import PrefixCache
from ...kvcache.store import KVStore
from ...kvcache.table import PageTable
from ..model.numerics import AS_THEY_ARE, Numerics
from ..model.runner import ModelRunner
from ..scheduling.retained_kv import RetainedKV
from ..scheduling.scheduler import Scheduler
from ..speculation.planner import DraftPlanner
from ..speculation.step_cost import StepCostModel
from ..state.request import (
    BROKEN,
    NO_ALLOWED_TOKEN,
    NOT_FINITE,
    Failure,
    FinishReason,
    Request,
    StepOutput,
)
from ..state.sequence import Context, Sequence
from ..state.sparse_prefill import SparsePrefillState, salt_of
from ..state.stats import EngineStats
from ..state.step import Decoded, Step
from .decoder import Decoder
from .eviction import Eviction
from .overlap import InFlightStep, can_overlap, launch_after
from .step_outputs import empty_output, failed_output, output_of

logger = logging.getLogger(__name__)

_MOST_BROKEN_PASSES: Final = 8
"""Failed passes of the model in a row that end the engine."""


class Engine:
    """All sequences of one model, advanced together step by step."""

    def __init__(
        self,
        *,
        runner: ModelRunner,
        store: KVStore,
        prefix_cache: bool,
        max_running: int,
        max_batch_tokens: int,
        chunk_tokens: int,
        vocabulary: Vocabulary,
        clock: Callable[[], float],
        pieces: Pieces,
        numerics: Numerics = AS_THEY_ARE,
        draft_trees: bool = True,
    ) -> None:
        self.pool = PagePool(store.pages)
        self.prefix = PrefixCache(self.pool, store.page_size, enabled=prefix_cache)
        self._eviction = Eviction(store, self.pool)
        self._retained_kv = RetainedKV()
        self.scheduler = Scheduler(
            self.pool,
            self.prefix,
            max_running=max_running,
            max_batch_tokens=max_batch_tokens,
            chunk_tokens=chunk_tokens,
            clock=clock,
            on_preempt=self._eviction.swap_out,
            on_split=self._split,
            retained_kv=self._retained_kv,
        )
        self.runner = runner
        self.decoder = Decoder(runner.kernels, numerics, pieces)
        self._step_cost = StepCostModel(clock)
        self._planner = DraftPlanner(
            self._step_cost,
            vocabulary,
            max_batch_tokens,
            clock,
            trees=draft_trees,
            lines=lambda: runner.graphs is not None,
        )
        self._clock = clock
        self._store = store
        self._by_request: dict[str, list[Sequence]] = {}
        self._arrivals = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._preemptions = 0
        self._steps = 0
        self._in_flight: InFlightStep | None = None
        self._last_step_s: float | None = None  # when it ended, if another followed at once
        # Failures outside of a step's rows, reported with the next outputs.
        self._failed: list[StepOutput] = []
        self._broken_passes = 0
        self.last_rows = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work or bool(self._failed)

    @property
    def bytes_per_token(self) -> int:
        """Memory of one token's keys and values, all layers together."""
        return self._store.bytes // (self._store.pages * self._store.page_size)

    def add(self, request: Request) -> None:
        """Queue a request. Its other choices fork off the first when the prompt has been read."""
        self._arrivals += 1
        try:
            first = self._choice(request, 0, self._arrivals, tuple(range(1, request.n)))
        except Exception:  # noqa: BLE001, RUF100 - a plug-in may raise anything; other requests go on
            logger.exception("request %s cannot begin", request.id)
            self._failed.append(
                StepOutput(request_id=request.id, index=0, token_ids=(), failure=BROKEN)
            )
            return
        self._by_request[request.id] = [first]
        self.scheduler.add(first)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one choice of it, now; unknown ids are ignored."""
        living = self._by_request.get(request_id, [])
        gone = [s for s in living if index is None or s.index == index]
        if index is not None:
            self._keep(gone)
            for sequence in living:
                sequence.pending_choices = tuple(i for i in sequence.pending_choices if i != index)
        self._finish(gone)

    def release(self, names: tuple[str, ...]) -> None:
        """Free the keys and values that are retained under these names."""
        self._retained_kv.release(names)

    def abort_all(self) -> None:
        """End everything, even after a step has failed half-way, and free all pages."""
        self._in_flight = None
        self._failed.clear()
        self._retained_kv.clear()
        self.scheduler.remove(self.scheduler.all())
        self._by_request.clear()

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """Advance every scheduled sequence; returns what is new."""
        outputs = self._step()
        if self._failed:
            outputs, self._failed = [*self._failed, *outputs], []
        return outputs

    def _step(self) -> list[StepOutput]:
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            step = in_flight.step(self.scheduler.running)
            if step.chunks:
                return self._collect(in_flight, step)
        broken = self._planner.plan(self.scheduler.running)
        if broken:
            self._failed += [failed_output(sequence, BROKEN) for sequence in broken]
            self._finish(broken)
        self._step_cost.start()
        began_s = self._clock() if self._last_step_s is None else self._last_step_s
        self._last_step_s = None
        step = self.scheduler.schedule()
        self._preemptions += len(step.preempted)
        self.last_rows = step.rows
        if not step.chunks:
            return []
        for context in step.restored:
            self._eviction.swap_in(context)
        try:
            logits = self.runner.run(step)
        except Exception as error:
            self._broken_passes += 1
            # A GPU's context is lost with its first error; a model that always fails is useless.
            lost = self.runner.on_gpu or isinstance(error, MemoryError)
            if lost or self._broken_passes == _MOST_BROKEN_PASSES:
                raise
            logger.exception("a pass over %d rows failed; its requests end", step.rows)
            gone = list({id(chunk.sequence): chunk.sequence for chunk in step.chunks}.values())
            self._finish(gone)
            return [failed_output(sequence, BROKEN) for sequence in gone]
        self._broken_passes = 0
        sequences = [chunk.sequence for chunk in step.chunks]
        if self.runner.graphs is not None and step.in_lines and all(map(can_overlap, sequences)):
            in_flight = InFlightStep.of(sequences, self.decoder.choose(logits, sequences))
            outputs = self._collect(in_flight, step)
            if self._in_flight is None:  # otherwise the time is that of two steps
                self._step_cost.stop(step.rows, 0, 0)
                self._note(step, began_s)
            return outputs
        self._eviction.note_certain(step)  # before choices fork off
        decoded = self.decoder.decode(step, logits, self._fork)
        outputs = self._commit(step, decoded)
        if step.only_decodes:
            self._step_cost.stop(step.rows - step.draft_tokens, step.draft_tokens, step.drafts)
        self._note(step, began_s)
        return outputs

    def _note(self, step: Step, began_s: float) -> None:
        """Tell the scheduler how long a step has taken, with planning and what came before it."""
        now_s = self._clock()
        self.scheduler.note(step, now_s - began_s)
        self._last_step_s = now_s if self.scheduler.has_work else None

    def _collect(self, in_flight: InFlightStep, step: Step) -> list[StepOutput]:
        """Commit a step that has been launched; before its tokens are known, launch the next one.

        None is launched while a waiting request could join the next step.
        """
        assert self.runner.graphs is not None
        self.last_rows = step.rows
        if not self.scheduler.admits:
            self._in_flight = launch_after(
                in_flight, self.scheduler.running, self.pool, self.runner.graphs, self.decoder
            )
        tokens = in_flight.tokens()
        decoded = [
            Decoded(
                sequence=chunk.sequence,
                tokens=[tokens[id(chunk.sequence)]],
                accepted=[],
                predictions=[tokens[id(chunk.sequence)]],
            )
            for chunk in step.chunks
        ]
        return self._commit(step, decoded)

    def stats(self) -> EngineStats:
        """Counters and gauges as of now."""
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=self.scheduler.waiting,
            pages_in_use=self.pool.in_use,
            pages_cached=self.pool.cached,
            pages_total=self.pool.count,
            page_bytes=self.bytes_per_token * self._store.page_size,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            prefix_queried_tokens=self.prefix.queried_tokens,
            prefix_hit_tokens=self.prefix.hit_tokens,
            preemptions=self._preemptions,
            steps=self._steps,
        )

    def _context(self, request: Request, prompt: tuple[int, ...]) -> dict[str, Any]:
        """The fields of a `Context` that has computed nothing yet."""
        sparse_prefill = SparsePrefillState.of(request, prompt)
        salt = salt_of(request, sparse_prefill)
        return {
            "tokens": list(prompt),
            "prompt_length": len(prompt),
            "table": PageTable(self.pool, self.prefix, self._store.page_size, salt),
            "eviction_state": self._eviction.eviction_state_for(request, prompt),
            "sparse_prefill": sparse_prefill,
        }

    def _choice(
        self, request: Request, index: int, arrival: int, pending_choices: tuple[int, ...] = ()
    ) -> Sequence:
        """A choice that has to read the prompt; `pending_choices` fork off it afterwards."""
        sampling = request.sampling
        if index:
            sampling = replace(sampling, seed=derive_seed(sampling.seed, index))
        return Sequence(
            **self._context(request, request.prompt_ids),
            request=request,
            index=index,
            sampling=sampling,
            arrival=arrival,
            other_contexts=tuple(
                Context(**self._context(request, ids)) for ids in request.contexts
            ),
            target=request.target,
            pending_choices=pending_choices,
        )

    def _split(self, sequence: Sequence, choices: tuple[int, ...]) -> list[Sequence]:
        """Make sequences of choices that cannot fork for lack of places; each reads the prompt."""
        made = [self._choice(sequence.request, i, sequence.arrival) for i in choices]
        self._by_request[sequence.request.id] += made
        return made

    def _fork(self, sequence: Sequence) -> list[Sequence]:
        """Fork off the request's other choices, once the prompt has been read."""
        forks: list[Sequence] = []
        for index in sequence.pending_choices:
            fork = replace(
                sequence,
                index=index,
                sampling=replace(
                    sequence.sampling, seed=derive_seed(sequence.sampling.seed, index)
                ),
                tokens=list(sequence.tokens),
                table=sequence.fork_table(),
                eviction_state=None
                if sequence.eviction_state is None
                else sequence.eviction_state.fork(),
                other_contexts=tuple(context.fork() for context in sequence.other_contexts),
                pending_choices=(),
                rule_state=None if sequence.rule_state is None else sequence.rule_state.fork(),
                prompt_logprobs=[],
            )
            forks.append(fork)
            self.scheduler.adopt(fork)
        sequence.pending_choices = ()
        self._by_request[sequence.request.id] += forks
        return forks

    def _commit(self, step: Step, decoded: list[Decoded]) -> list[StepOutput]:
        """Record what was computed and chosen; end what has ended or failed."""
        self._steps += 1
        failed = _failures(step, decoded)
        for chunk in step.chunks:
            context = chunk.context
            read = context.prompt_length - context.computed
            self._prompt_tokens += max(0, min(chunk.count, read))
            context.computed += chunk.count - chunk.drafted
            if not chunk.drafted and id(chunk.sequence) not in failed:
                context.table.publish(context.tokens, min(context.computed, context.shareable))
        outputs: list[StepOutput] = []
        ended: list[Sequence] = []
        moves: list[tuple[int, int]] = []
        for item in decoded:
            sequence = item.sequence
            count, reason, stop_reason = self._append(sequence, item.tokens)
            if reason is not None:  # it ended before the failure
                failed.pop(id(sequence), None)
            elif item.ending == NO_ALLOWED_TOKEN:
                reason, stop_reason = "stop", NO_ALLOWED_TOKEN
            if sequence.draft is not None:
                moves += self._keep_accepted(item, count)
            if count or reason is not None:
                outputs.append(output_of(item, count, reason, stop_reason))
            if reason is not None:
                ended.append(sequence)
            if item.draft is not None and not self._planner.learn(sequence, item):
                failed.setdefault(id(sequence), (sequence, BROKEN))
        if moves:
            sources, targets = zip(*moves, strict=True)
            self._store.move_slots(sources, targets)
        broken = [sequence for sequence, _ in failed.values() if sequence not in ended]
        self._eviction.evict(step, decoded, [*ended, *broken])
        for chunk in step.chunks:
            sequence = chunk.sequence
            done = sequence.request.max_tokens == 0 and sequence.remaining == 0
            if done and id(sequence) not in failed:
                outputs += [
                    empty_output(sequence, index)
                    for index in (sequence.index, *sequence.pending_choices)
                ]
                ended.append(sequence)
        outputs += [failed_output(each, failed[id(each)][1]) for each in broken]
        self._keep(ended)
        self._finish([*ended, *broken])
        return outputs

    def _append(
        self, sequence: Sequence, tokens: list[int]
    ) -> tuple[int, FinishReason | None, int | str | None]:
        """Append tokens up to the one that ends the choice; returns how many, and why it ended."""
        before = len(sequence.tokens)
        reason: FinishReason | None = None
        stop_reason: int | None = None
        for token in tokens:
            sequence.tokens.append(token)
            reason, stop_reason = self._ending(sequence, token)
            if reason is not None:
                break
        count = len(sequence.tokens) - before
        for context in sequence.other_contexts:
            context.tokens += sequence.tokens[before:]
        for context in sequence.contexts:
            context.computed = len(context.tokens) - 1
        self._generation_tokens += count
        return count, reason, stop_reason

    def _keep_accepted(self, item: Decoded, count: int) -> list[tuple[int, int]]:
        """Drop the rejected draft tokens; returns (from, to) of KV slots that have to move.

        A tree's accepted path is scattered over slots; the moves compact it.
        """
        sequence, size = item.sequence, self._store.page_size
        sequence.draft = None
        moves: list[tuple[int, int]] = []
        for context in sequence.contexts:
            table = context.table
            root = context.computed - count
            for behind, draft_token in enumerate(item.accepted[: count - 1]):
                if draft_token != behind and isinstance(table, PageTable):
                    moves.append(
                        tuple(  # pyright: ignore[reportArgumentType] -- two of them
                            table.pages[at // size] * size + at % size
                            for at in (root + 1 + draft_token, root + 1 + behind)
                        )
                    )
            table.truncate(context.computed)
            table.publish(context.tokens, min(context.computed, context.shareable))
        return moves

    def _ending(self, sequence: Sequence, token: int) -> tuple[FinishReason | None, int | None]:
        if token in sequence.request.stop_token_ids:
            return "stop", token
        if sequence.generated >= sequence.request.max_tokens:
            return "length", None
        return None, None

    def _keep(self, ended: list[Sequence]) -> None:
        """Retain the keys and values of ended sequences that will be continued."""
        for sequence in ended:
            if sequence.request.retain and self.prefix.enabled:
                self._retained_kv.put(sequence.request.retained_name(sequence.index), sequence)

    def _finish(self, gone: list[Sequence]) -> None:
        self.scheduler.remove(gone)
        if not self.scheduler.running:
            self._in_flight = None
        for sequence in gone:
            self._planner.finish(sequence)
            living = self._by_request.get(sequence.request.id)
            if living is not None:
                living.remove(sequence)
                if not living:
                    del self._by_request[sequence.request.id]


def _failures(step: Step, decoded: list[Decoded]) -> dict[int, tuple[Sequence, Failure]]:
    """The sequences that cannot go on, by `id`, and why.

    If a prompt's keys are not finite, none of its request's choices has a first token.
    """
    unread = {chunk.sequence.request.id for chunk in step.chunks if not chunk.finite}
    failed = {
        id(chunk.sequence): (chunk.sequence, NOT_FINITE)
        for chunk in step.chunks
        if not chunk.finite
    }
    for item in decoded:
        if item.sequence.request.id in unread:
            item.tokens, item.ending = [], NOT_FINITE
        if isinstance(item.ending, Failure):
            failed[id(item.sequence)] = (item.sequence, item.ending)
    return failed
