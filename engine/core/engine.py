"""The engine: `step()` is schedule, run, decode, commit. Synchronous; knows no thread, no text."""

import logging
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from ...decoding.drafting.base import Vocabulary
from ...decoding.pieces import Pieces
from ...kvcache.pages import PagePool
from ...kvcache.prefix import PrefixCache
from ...kvcache.state_pool import StatePool
from ...kvcache.store import KVStore
from ..adapters.store import AdapterStore, refuse_all
from ..model.numerics import AS_THEY_ARE, Numerics
from ..model.picture_rows import encode, place
from ..model.runner import ModelRunner
from ..scheduling.retained_kv import RetainedKV
from ..scheduling.scheduler import Scheduler
from ..speculation.planner import DraftPlanner
from ..speculation.step_cost import StepCostModel
from ..state.request import BROKEN, Request, StepOutput
from ..state.sequence import Sequence
from ..state.stats import EngineStats
from ..state.step import Decoded, Step
from .choices import Choices
from .commit import Commit
from .decoder import Decoder
from .eviction import Eviction
from .overlap import OverlapLoop
from .step_outputs import failed_output

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
        adapters: AdapterStore | None = None,
    ) -> None:
        self.adapters = adapters or AdapterStore(refuse_all)
        self.pool = PagePool(store.pages)
        self.prefix = PrefixCache(self.pool, store.page_size, enabled=prefix_cache)
        self.states = None if runner.recurrent is None else runner.recurrent.pool
        self._eviction = Eviction(store, self.pool)
        self._choices = Choices(
            self.pool,
            self.prefix,
            store.page_size,
            self._eviction,
            self.adapters,
            place(runner.pictures),
            self.states,
        )
        self._retained_kv = RetainedKV(self.states)
        self.scheduler = Scheduler(
            self.pool,
            self.prefix,
            max_running=max_running,
            max_batch_tokens=max_batch_tokens,
            chunk_tokens=chunk_tokens,
            clock=clock,
            on_preempt=self._eviction.swap_out,
            on_split=self._choices.split,
            retained_kv=self._retained_kv,
            states=self.states,
        )
        self.runner = runner
        self.decoder = Decoder(runner.kernels, numerics, pieces)
        self._overlap = OverlapLoop(self.scheduler, self.pool, runner, self.decoder)
        self._step_cost = StepCostModel(clock)
        self._planner = DraftPlanner(
            self._step_cost,
            vocabulary,
            max_batch_tokens,
            clock,
            trees=draft_trees,
            lines=lambda: runner.graphs is not None,
        )
        self._commit = Commit(store, self._eviction, self._planner)
        self._clock = clock
        self._store = store
        self._max_running = max_running
        self._preemptions = 0
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
        try:
            first = self._choices.begin(request)
        except Exception:  # noqa: BLE001, RUF100 - a plug-in may raise anything; other requests go on
            logger.exception("request %s cannot begin", request.id)
            self._failed.append(
                StepOutput(request_id=request.id, index=0, token_ids=(), failure=BROKEN)
            )
            return
        self.scheduler.add(first)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one choice of it, now; unknown ids are ignored."""
        living = self._choices.living(request_id)
        gone = [s for s in living if index is None or s.index == index]
        if index is not None:
            self._retain(gone)
            for sequence in living:
                sequence.pending_choices = tuple(i for i in sequence.pending_choices if i != index)
        self._end(gone)

    def release(self, names: tuple[str, ...]) -> None:
        """Free the keys and values that are retained under these names."""
        self._retained_kv.release(names)

    def abort_all(self) -> None:
        """End everything, even after a step has failed half-way, and free all pages."""
        self._overlap.drop()
        self._failed.clear()
        self._retained_kv.clear()
        self.scheduler.remove(self.scheduler.all())
        if self.states is not None:
            self.states.clear()
        self._choices.clear()
        self._planner.clear()

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """Advance every scheduled sequence; returns what is new."""
        outputs = self._step()
        if self._failed:
            outputs, self._failed = [*self._failed, *outputs], []
        return outputs

    def _step(self) -> list[StepOutput]:
        overlapped = self._overlap.next()
        if overlapped is not None:
            return self._finish(*overlapped)
        step, began_s = self._schedule()
        self._encode_pictures(step)
        if not step.chunks:
            return []
        try:
            logits = self._run(step)
        except Exception as error:
            return self._broken_pass(step, error)
        decoded = self._decode(step, logits)
        outputs = self._finish(step, decoded)
        self._measure(step, began_s)
        return outputs

    def _schedule(self) -> tuple[Step, float]:
        """Plan the drafts, choose the rows; also returns when that began."""
        broken = self._planner.plan(self.scheduler.running)
        if broken:
            self._failed += [failed_output(sequence, BROKEN) for sequence in broken]
            self._end(broken)
        self._step_cost.start()
        began_s = self._clock() if self._last_step_s is None else self._last_step_s
        self._last_step_s = None
        step = self.scheduler.schedule()
        self._preemptions += len(step.preempted)
        self.last_rows = step.rows
        return step, began_s

    def _encode_pictures(self, step: Step) -> None:
        """Make embeddings of the step's pictures; sequences whose pictures fail end before it."""
        failed = encode(self.runner.pictures, step)
        if failed:
            self._failed += [failed_output(sequence, BROKEN) for sequence in failed]
            step.chunks = [chunk for chunk in step.chunks if chunk.sequence not in failed]
            self._end(failed)

    def _run(self, step: Step) -> Tensor:
        """The logits of the step's wanted rows, `[R, V]`."""
        for context in step.restored:
            self._eviction.swap_in(context)
        logits = self.runner.run(step)
        self._broken_passes = 0
        return logits

    def _broken_pass(self, step: Step, error: Exception) -> list[StepOutput]:
        """End the requests of a pass that failed; raises `error` if the engine cannot go on."""
        self._broken_passes += 1
        # A GPU's context is lost with its first error; a model that always fails is useless.
        lost = self.runner.on_gpu or isinstance(error, MemoryError)
        if lost or self._broken_passes == _MOST_BROKEN_PASSES:
            raise error
        logger.error("a pass over %d rows failed; its requests end", step.rows, exc_info=error)
        gone = list({id(chunk.sequence): chunk.sequence for chunk in step.chunks}.values())
        self._end(gone)
        return [failed_output(sequence, BROKEN) for sequence in gone]

    def _decode(self, step: Step, logits: Tensor) -> list[Decoded]:
        """The next tokens of every sequence that decodes."""
        decoded = self._overlap.begin(step, logits)
        if decoded is None:
            self._eviction.note_certain(step)  # before choices fork off
            decoded = self.decoder.decode(step, logits, self._fork)
        return decoded

    def _finish(self, step: Step, decoded: list[Decoded]) -> list[StepOutput]:
        """Commit the step; end what has ended or failed."""
        self.last_rows = step.rows
        done = self._commit.commit(step, decoded)
        if self.runner.recurrent is not None:
            self.runner.recurrent.read_drafts(step.chunks)
        self._retain(done.ended)
        self._end([*done.ended, *done.broken])
        return done.outputs

    def _measure(self, step: Step, began_s: float) -> None:
        """Learn how long the step has taken, with planning and what came between steps."""
        if self._overlap.busy:  # the time is that of two steps
            return
        if step.only_decodes:
            self._step_cost.stop(step.rows - step.draft_tokens, step.draft_tokens, step.drafts)
        now_s = self._clock()
        self.scheduler.note(step, now_s - began_s)
        self._last_step_s = now_s if self.scheduler.has_work else None

    def stats(self) -> EngineStats:
        """Counters and gauges as of now."""
        return EngineStats(
            max_running=self._max_running,
            running=len(self.scheduler.running),
            waiting=self.scheduler.waiting,
            pages_in_use=self.pool.in_use,
            pages_cached=self.pool.cached,
            pages_total=self.pool.count,
            page_bytes=self.bytes_per_token * self._store.page_size,
            prompt_tokens=self._commit.prompt_tokens,
            generation_tokens=self._commit.generation_tokens,
            prefix_queried_tokens=self.prefix.queried_tokens,
            prefix_hit_tokens=self.prefix.hit_tokens,
            preemptions=self._preemptions,
            steps=self._commit.steps,
            **({} if self.states is None else _of_states(self.states)),
        )

    def _fork(self, sequence: Sequence) -> list[Sequence]:
        """Fork off the request's other choices, and run them."""
        forks = self._choices.fork(sequence)
        for fork in forks:
            self.scheduler.adopt(fork)
        return forks

    def _retain(self, ended: list[Sequence]) -> None:
        """Retain the keys and values of ended sequences that will be continued."""
        for sequence in ended:
            if sequence.request.retain and self.prefix.enabled:
                self._retained_kv.put(sequence.request.retained_name(sequence.index), sequence)

    def _end(self, gone: list[Sequence]) -> None:
        """Free what these sequences hold."""
        self.scheduler.remove(gone)
        if not self.scheduler.running:
            self._overlap.drop()
        for sequence in gone:
            self._planner.finish(sequence)
            self._choices.end(sequence)


def _of_states(states: StatePool) -> dict[str, int]:
    return {
        "state_slots_in_use": states.in_use,
        "state_snapshots": states.snapshots,
        "state_slots_total": states.store.slots,
        "state_slot_bytes": states.store.slot_bytes,
    }
