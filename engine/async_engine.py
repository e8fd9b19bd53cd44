"""The served engine: `submit`, `abort` and `stats`, wherever it runs (`transport/host.py`).

    event loop                                   engine thread or process
    submit, abort   ------- messages --------->  Engine.add, Engine.abort
    Generation      <-- one callback a step ----  Engine.step

The event loop does text, admission and metrics; the other side only runs steps.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from prometheus_client import CollectorRegistry

from ..errors import EXITS, EngineDeadError, OverloadedError, PenstockError, UnavailableError
from .build import build_engine
from .config import EngineConfig
from .loading.loader import ModelInfo
from .outputs.generation import Generation
from .outputs.metrics import EngineCollector, RequestMetrics
from .requests.input_processor import InputProcessor
from .requests.tokenizer import Tokenizer
from .search.async_search import AsyncSearch
from .search.evaluators import Evaluator, in_threads, registered
from .state.messages import Abort
from .state.request import PART, ChoiceDelta, Request, StepOutput
from .state.stats import EngineStats
from .transport.host import EngineHost, ThreadHost
from .transport.process import ProcessHost

logger = logging.getLogger(__name__)


class AsyncEngine:
    """Serves one model to many concurrent callers on one event loop.

    `clock` gives seconds from any fixed point; metrics go to the injected `registry`. `evaluators`:
    those that searches may name, besides the ones that packages register.
    """

    def __init__(
        self,
        host: EngineHost,
        model: ModelInfo,
        input_processor: InputProcessor,
        config: EngineConfig,
        *,
        registry: CollectorRegistry,
        clock: Callable[[], float],
        evaluators: Mapping[str, Evaluator] | None = None,
    ) -> None:
        self.model = model
        self._evaluators = {**in_threads(registered()), **(evaluators or {})}
        known = replace(input_processor.search_limits, evaluators=frozenset(self._evaluators))
        self.input_processor = replace(input_processor, search_limits=known)
        self.tokenizer: Tokenizer = input_processor.tokenizer
        self.config = config
        self.metrics = RequestMetrics(registry, max_length_tokens=model.max_length_tokens)
        registry.register(EngineCollector(self.stats))
        self._host = host
        self._clock = clock
        self._live: dict[str, Generation] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._failure: str | None = None
        self._draining = False
        self._mean_request_s = 1.0

    @classmethod
    def load(
        cls,
        config: EngineConfig,
        *,
        registry: CollectorRegistry,
        clock: Callable[[], float],
        evaluators: Mapping[str, Evaluator] | None = None,
    ) -> "AsyncEngine":
        """Load the model and build the engine; blocks until done, and needs no event loop.

        Raises:
            ConfigurationError: settings or model cannot be served.
        """
        if config.engine_in == "process":
            process = ProcessHost(config, clock)
            model, input_processor = process.ready.info, process.input_processor(config)
            host: EngineHost = process
        else:
            built = build_engine(config, clock)
            host, model, input_processor = (
                ThreadHost(built.engine, clock),
                built.info,
                built.input_processor,
            )
        input_processor.tokenizer.prepare()
        return cls(
            host,
            model,
            input_processor,
            config,
            registry=registry,
            clock=clock,
            evaluators=evaluators,
        )

    def start(self) -> None:
        """Start the engine; call it on the event loop that will consume its outputs."""
        self._host.start(self._stepped, self._fail)

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, give live ones `drain_s` to finish, end the rest, stop."""
        self._draining = True
        if self._live and drain_s > 0:
            try:
                await asyncio.wait_for(self._idle.wait(), drain_s)
            except TimeoutError:
                logger.warning("%d requests did not finish within %g s", len(self._live), drain_s)
        error = UnavailableError("the server is shutting down; the request was ended")
        for generation in list(self._live.values()):
            self._cancel(generation, error)
        await self._host.stop()
        self.tokenizer.close()

    def submit(self, request: Request) -> Generation:
        """Queue a request.

        Raises:
            OverloadedError: the queue is full.
            UnavailableError: shutting down, or the engine is dead.
        """
        self.check_health()
        if self._draining:
            raise UnavailableError("the server is shutting down")
        self._check_queue(request)
        generation = self._generation(request)
        generation.metrics.n.observe(request.n)
        if request.contexts:
            generation.metrics.guidance_requests.inc()
        generation.metrics.max_tokens.observe(request.max_tokens)
        if not isinstance(generation, AsyncSearch):
            self._host.send(request)  # first: a request that cannot be sent must not count as live
        self._live[request.id] = generation
        self._idle.clear()
        if isinstance(generation, AsyncSearch):
            generation.begin()
        return generation

    def _generation(self, request: Request) -> Generation:
        metrics, now_s = self.metrics.of(_label(request)), self._clock()
        if request.search is None:
            return Generation(
                request,
                tokenizer=self.tokenizer,
                metrics=metrics,
                submitted_s=now_s,
                abort=self.abort,
            )
        return AsyncSearch(
            request,
            input_processor=self.input_processor,
            metrics=metrics,
            submitted_s=now_s,
            abort=self.abort,
            send=self._host.send,
            ended=self._end,
            evaluators=self._evaluators,
        )

    def abort(self, request_id: str) -> None:
        """End a request now; unknown or finished ids are ignored."""
        generation = self._live.get(request_id)
        if generation is not None:
            self._cancel(generation)

    def stats(self) -> EngineStats:
        """Counters and gauges as of the last step."""
        return self._host.stats()

    def check_health(self) -> None:
        """Raise EngineDeadError if the engine has failed or hangs in a step."""
        if self._failure is not None:
            raise EngineDeadError(f"the engine has failed: {self._failure}")
        started = self._host.busy_since_s()
        if started is not None and self._clock() - started > self.config.stall_s:
            raise EngineDeadError(
                f"the engine has been in one step for more than {self.config.stall_s:g} s"
            )

    @property
    def draining(self) -> bool:
        """Whether `stop` was called."""
        return self._draining

    def _check_queue(self, request: Request) -> None:
        """Refuse a request that would wait too long. One owner cannot fill the queue for all: an
        owner with at most an equal part of the limit is admitted up to twice the limit."""
        config, owner = self.config, request.owner
        owners = {generation.request.owner for generation in self._live.values()} | {owner}
        waits = [g for g in self._live.values() if g.first_token_s is None]

        def admits(held: list[tuple[str, int]], new: int, limit: int) -> bool:
            total = sum(count for _, count in held) + new
            own = sum(count for name, count in held if name == owner) + new
            return total <= limit or (total <= 2 * limit and own * len(owners) <= limit)

        sequences = [(g.request.owner, g.sequences) for g in self._live.values()]
        tokens = [(g.request.owner, g.request.prompt_tokens) for g in waits]
        live = sum(count for _, count in sequences)
        retry_after_s = self._retry_after_s(live)
        limit = config.max_running + config.max_queued_requests
        if not admits(sequences, request.sequences, limit):
            raise OverloadedError(
                f"{live} sequences are running or waiting and this request adds "
                f"{request.sequences}; the limit is {limit}; try again in {retry_after_s} s",
                retry_after_s=retry_after_s,
            )
        queued = sum(count for _, count in tokens)
        if queued and not admits(tokens, request.prompt_tokens, config.max_queued_tokens):
            raise OverloadedError(
                f"{queued} prompt tokens are waiting and this request adds "
                f"{request.prompt_tokens}; the limit is {config.max_queued_tokens}; try "
                f"again in {retry_after_s} s",
                retry_after_s=retry_after_s,
            )

    def _retry_after_s(self, live: int) -> int:
        """Seconds (1 to 60) until the live sequences have ended, from how long requests took."""
        rounds = live / self.config.max_running
        return min(60, max(1, math.ceil(self._mean_request_s * rounds)))

    def _stepped(self, outputs: list[StepOutput], rows: int) -> None:
        """Deliver the outputs of one step to their requests."""
        if rows:
            self.metrics.iteration_tokens.observe(rows)
        now_s = self._clock()
        for output in outputs:
            generation = self._live.get(output.request_id.partition(PART)[0])
            if generation is None:
                continue
            try:
                self._deliver(generation, output, now_s)
            except PenstockError as error:  # the tokenizer fails on these tokens
                self._cancel(generation, error)
            except EXITS:
                raise
            except BaseException:  # one request's text must not fail the step's other requests
                logger.exception(
                    "the output of request %s could not be read", generation.request.id
                )
                self._cancel(generation, PenstockError("the output could not be read"))

    def _deliver(self, generation: Generation, output: StepOutput, now_s: float) -> None:
        if isinstance(generation, AsyncSearch):
            generation.feed(output)
            self._count(generation, output, output, now_s)
            return
        if output.failure is not None:
            if generation.output_state.fails(output):
                self._cancel(generation, output.failure.error())
            return
        delta, ended_by_text = generation.output_state.feed(output)
        if delta is None:
            return
        if ended_by_text:
            self._host.send(Abort(request_id=output.request_id, index=output.index))
        self._observe(generation, output, delta, now_s)
        generation.push(delta)
        if generation.output_state.finished:
            generation.reason = delta.finish_reason or "stop"
            self._end(generation)

    def _cancel(self, generation: Generation, error: PenstockError | None = None) -> None:
        if not isinstance(generation, AsyncSearch):
            self._host.send(Abort(request_id=generation.request.id))
        self._end(generation, error)

    def _fail(self, reason: str) -> None:
        self._failure = reason
        error = EngineDeadError("the engine has failed; the request could not be finished")
        for generation in list(self._live.values()):
            self._end(generation, error)

    def _observe(
        self, generation: Generation, output: StepOutput, delta: ChoiceDelta, now_s: float
    ) -> None:
        metrics = generation.metrics
        last_s = generation.last_token_s.get(delta.index)
        if last_s is not None:
            metrics.inter_token.observe(now_s - last_s)
        generation.last_token_s[delta.index] = now_s
        self._count(generation, output, delta, now_s)

    def _count(
        self,
        generation: Generation,
        output: StepOutput,
        taken: StepOutput | ChoiceDelta,
        now_s: float,
    ) -> None:
        metrics = generation.metrics
        if generation.first_token_s is None:
            generation.first_token_s = now_s
            generation.started_s = output.first_scheduled_s
            if not isinstance(generation, AsyncSearch):
                metrics.prompt_tokens.inc(generation.usage.prompt_tokens)
            metrics.first_token.observe(now_s - generation.submitted_s)
        metrics.generation_tokens.inc(len(taken.token_ids))
        if taken.counters is not None:
            metrics.count(taken.counters)

    def _end(self, generation: Generation, error: PenstockError | None = None) -> None:
        """End a request: every request ends here, once, and its metrics are written here."""
        if self._live.pop(generation.request.id, None) is None:
            return
        if not self._live:
            self._idle.set()
        if isinstance(generation, AsyncSearch):
            generation.leave()
            generation.metrics.prompt_tokens.inc(generation.usage.prompt_tokens)
            generation.metrics.thoughts.inc(generation.usage.thoughts)
        reason = "error" if error is not None else generation.reason
        self.metrics.ended(_label(generation.request), reason)
        metrics, now_s = generation.metrics, self._clock()
        elapsed_s = now_s - generation.submitted_s
        metrics.end_to_end.observe(elapsed_s)
        started_s, first_s = generation.started_s, generation.first_token_s
        if started_s is not None and first_s is not None:
            metrics.queued.observe(max(0.0, started_s - generation.submitted_s))
            metrics.prefill.observe(max(0.0, first_s - started_s))
            metrics.decode.observe(now_s - first_s)
            metrics.inference.observe(max(0.0, now_s - started_s))
            metrics.request_prompt.observe(generation.usage.prompt_tokens)
            metrics.request_generation.observe(generation.usage.completion_tokens)
            later = generation.usage.completion_tokens - generation.request.n
            if later > 0:
                metrics.per_token.observe((now_s - first_s) / later)
        if reason in ("stop", "length"):
            self._mean_request_s += 0.1 * (elapsed_s - self._mean_request_s)
        generation.close(error)


def _label(request: Request) -> str:
    """Names of the decoding methods used: a bounded set of labels, those of the registry."""
    return "+".join(sorted(c.method.name for c in request.methods.chosen)) or "plain"
