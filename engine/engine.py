"""The engine: `step()` is schedule, run, decode, commit. Synchronous; knows no thread, no text."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..decoding.gumbel import derive_seed
from ..decoding.logprobs import gather_logprobs
from ..decoding.sampler import Sampler
from ..kvcache.pages import PagePool
from ..kvcache.prefix import PrefixCache
from ..kvcache.store import KVStore
from ..kvcache.table import PageTable
from .request import FinishReason, Request, StepOutput, TokenLogprobs
from .runner import ModelRunner
from .scheduler import Chunk, Scheduler, Step
from .sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot for logs and metrics; token counts are totals since start."""

    running: int = 0
    waiting: int = 0
    pages_in_use: int = 0
    pages_cached: int = 0
    pages_total: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    steps: int = 0


@dataclass(slots=True, kw_only=True)
class _Decoded:
    """A sequence's next token, and its logprobs if asked for."""

    sequence: Sequence
    token: int
    logprobs: tuple[TokenLogprobs, ...]


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
        clock: Callable[[], float],
    ) -> None:
        self.pool = PagePool(store.pages)
        self.prefix = PrefixCache(self.pool, store.page_size, enabled=prefix_cache)
        self.scheduler = Scheduler(
            self.pool,
            self.prefix,
            max_running=max_running,
            max_batch_tokens=max_batch_tokens,
            chunk_tokens=chunk_tokens,
            clock=clock,
        )
        self.runner = runner
        self.sampler = Sampler()
        self._store = store
        self._by_request: dict[str, list[Sequence]] = {}
        self._arrivals = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._preemptions = 0
        self._steps = 0
        self.last_rows = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work

    @property
    def bytes_per_token(self) -> int:
        """Memory of one token's keys and values, all layers together."""
        return self._store.bytes // (self._store.pages * self._store.page_size)

    def add(self, request: Request) -> None:
        """Queue a request. Its other choices fork off the first when the prompt has been read."""
        self._arrivals += 1
        first = Sequence(
            request=request,
            index=0,
            sampling=request.sampling,
            tokens=list(request.prompt_ids),
            prompt_length=len(request.prompt_ids),
            table=PageTable(self.pool, self.prefix, self._store.page_size, request.cache_salt),
            arrival=self._arrivals,
            unborn=tuple(range(1, request.n)),
        )
        self._by_request[request.id] = [first]
        self.scheduler.add(first)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one choice of it, now; unknown ids are ignored."""
        living = self._by_request.get(request_id, [])
        gone = [s for s in living if index is None or s.index == index]
        if index is not None:
            for sequence in living:
                sequence.unborn = tuple(i for i in sequence.unborn if i != index)
        self._finish(gone)

    def abort_all(self) -> None:
        """End everything, also after a step has failed half-way; all pages are free then."""
        self.scheduler.remove(self.scheduler.all())
        self._by_request.clear()

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """Advance every scheduled sequence; returns what is new."""
        step = self.scheduler.schedule()
        self.last_rows = step.rows
        self._preemptions += len(step.preempted)
        if not step.chunks:
            return []
        logits = self.runner.run(step)
        decoded = self._decode(step, logits)
        return self._commit(step, decoded)

    def stats(self) -> EngineStats:
        """Counters and gauges as of now."""
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=self.scheduler.waiting,
            pages_in_use=self.pool.in_use,
            pages_cached=self.pool.cached,
            pages_total=self.pool.count,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            prefix_queried_tokens=self.prefix.queried_tokens,
            prefix_hit_tokens=self.prefix.hit_tokens,
            preemptions=self._preemptions,
            steps=self._steps,
        )

    def _decode(self, step: Step, logits: Tensor) -> list[_Decoded]:
        """Choose the next token of every sequence whose newest token is in the step."""
        at: list[int] = []
        rows: list[Sequence] = []
        row = 0
        for chunk in step.chunks:
            sequence = chunk.sequence
            if sequence.request.prompt_logprobs is not None:
                self._collect_prompt_logprobs(chunk, logits[row : row + chunk.count])
                row += chunk.count
            elif chunk.is_last:
                row += 1
            if chunk.is_last and sequence.request.max_tokens > 0:
                family = [sequence, *self._fork(sequence)]
                rows += family
                at += [row - 1] * len(family)
        if not rows:
            return []
        picked = logits if at == list(range(logits.shape[0])) else logits[at]
        wanting = [i for i, s in enumerate(rows) if s.request.logprobs is not None]
        raw = picked[wanting].clone() if wanting else None
        chosen = self.sampler.sample(picked, rows)
        tokens = chosen.tolist()  # the step's one synchronisation with the device
        logprobs = self._logprobs(raw, rows, wanting, tokens) if raw is not None else {}
        return [
            _Decoded(sequence=s, token=tokens[i], logprobs=logprobs.get(i, ()))
            for i, s in enumerate(rows)
        ]

    def _logprobs(
        self, raw: Tensor, rows: list[Sequence], wanting: list[int], tokens: list[int]
    ) -> dict[int, tuple[TokenLogprobs, ...]]:
        counts = [rows[i].request.logprobs or 0 for i in wanting]
        found = _token_logprobs(raw, [tokens[i] for i in wanting], counts)
        return {i: (entry,) for i, entry in zip(wanting, found, strict=True)}

    def _collect_prompt_logprobs(self, chunk: Chunk, logits: Tensor) -> None:
        """Row i predicts prompt token i + 1; rows computed again after preemption are skipped."""
        sequence = chunk.sequence
        first = max(sequence.computed, len(sequence.prompt_logprobs))
        last = min(sequence.computed + chunk.count, sequence.prompt_length - 1)
        if first >= last:
            return
        rows = logits[first - sequence.computed : last - sequence.computed]
        targets = sequence.tokens[first + 1 : last + 1]
        counts = [sequence.request.prompt_logprobs or 0] * len(targets)
        sequence.prompt_logprobs += _token_logprobs(rows, targets, counts)

    def _fork(self, sequence: Sequence) -> list[Sequence]:
        """The request's other choices, born when the prompt has been read."""
        forks: list[Sequence] = []
        for index in sequence.unborn:
            fork = replace(
                sequence,
                index=index,
                sampling=replace(
                    sequence.sampling, seed=derive_seed(sequence.sampling.seed, index)
                ),
                tokens=list(sequence.tokens),
                table=sequence.table.fork(),
                unborn=(),
                prompt_logprobs=[],
            )
            forks.append(fork)
            self.scheduler.adopt(fork)
        sequence.unborn = ()
        self._by_request[sequence.request.id] += forks
        return forks

    def _commit(self, step: Step, decoded: list[_Decoded]) -> list[StepOutput]:
        """Record what was computed and chosen; end what has ended."""
        self._steps += 1
        for chunk in step.chunks:
            sequence = chunk.sequence
            read = sequence.prompt_length - sequence.computed
            self._prompt_tokens += max(0, min(chunk.count, read))
            sequence.computed += chunk.count
            sequence.table.publish(sequence.tokens, sequence.computed)
        outputs: list[StepOutput] = []
        ended: list[Sequence] = []
        for item in decoded:
            sequence = item.sequence
            sequence.computed = len(sequence.tokens)
            sequence.tokens.append(item.token)
            reason, stop_reason = self._ending(sequence, item.token)
            outputs.append(_output(sequence, (item.token,), item.logprobs, reason, stop_reason))
            if reason is not None:
                ended.append(sequence)
        self._generation_tokens += len(decoded)
        for chunk in step.chunks:
            sequence = chunk.sequence
            if sequence.request.max_tokens == 0 and sequence.remaining == 0:
                outputs += [
                    _output(sequence, (), (), "length", None, index=index)
                    for index in (sequence.index, *sequence.unborn)
                ]
                ended.append(sequence)
        self._finish(ended)
        return outputs

    def _ending(self, sequence: Sequence, token: int) -> tuple[FinishReason | None, int | None]:
        if token in sequence.request.stop_token_ids:
            return "stop", token
        if sequence.generated >= sequence.request.max_tokens:
            return "length", None
        return None, None

    def _finish(self, gone: list[Sequence]) -> None:
        self.scheduler.remove(gone)
        for sequence in gone:
            living = self._by_request.get(sequence.request.id)
            if living is not None:
                living.remove(sequence)
                if not living:
                    del self._by_request[sequence.request.id]


def _output(
    sequence: Sequence,
    token_ids: tuple[int, ...],
    logprobs: tuple[TokenLogprobs, ...],
    reason: FinishReason | None,
    stop_reason: int | None,
    *,
    index: int | None = None,
) -> StepOutput:
    first = not sequence.has_output
    sequence.has_output = True
    asked = sequence.request.prompt_logprobs is not None and sequence.index == 0
    return StepOutput(
        request_id=sequence.request.id,
        index=sequence.index if index is None else index,
        token_ids=token_ids,
        logprobs=logprobs,
        finish_reason=reason,
        stop_reason=stop_reason,
        cached_tokens=sequence.cached_tokens if first else 0,
        first_scheduled_s=sequence.first_scheduled_s if first else None,
        prompt_logprobs=tuple(sequence.prompt_logprobs) if first and asked else None,
    )


def _token_logprobs(logits: Tensor, token_ids: list[int], counts: list[int]) -> list[TokenLogprobs]:
    targets = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)
    found = gather_logprobs(logits, targets, max(counts))
    return [
        TokenLogprobs(
            token_id=token,
            logprob=found.chosen[i],
            rank=found.ranks[i],
            top=tuple(zip(found.top_ids[i][:count], found.top_values[i][:count], strict=True)),
        )
        for i, (token, count) in enumerate(zip(token_ids, counts, strict=True))
    ]
