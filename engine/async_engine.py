"""The served engine: `submit`, `abort` and `stats`, wherever it runs (`transport/host.py`).

    event loop                                   engine thread or process
    submit, abort   ------- messages --------->  Engine.add, Engine.abort
    GenerationStream <-- one callback a step ---  Engine.step

The event loop does text, admission and metrics; the other side only runs steps.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from prometheus_client import CollectorRegistry

from ..errors import (
    ConfigurationError,
    EngineDeadError,
    OverloadedError,
    PenstockError,
    RequestError,
    UnavailableError,
)
from .adapters.served import ServedAdapter, ServedAdapters
from .build import build_engine
from .config import EngineConfig
from .loading.loader import ModelInfo
from .outputs.generation import Generation, PlainGeneration
from .outputs.generation_stream import GenerationStream
from .outputs.metrics import EngineCollector, RequestMetrics
from .outputs.output_processor import OutputProcessor
from .outputs.request_times import RequestTimes
from .requests.input_processor import InputProcessor
from .requests.tokenizer import Tokenizer
from .search.async_search import AsyncSearch
from .search.evaluators import Evaluator, in_threads, registered
from .state.messages import DropAdapter
from .state.request import Request, StepOutput
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
        self._adapters = ServedAdapters(
            config, model.created, lambda key: host.send(DropAdapter(key=key))
        )
        self._outputs = OutputProcessor(self._ended, self._unreadable)
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
        live = self._outputs.live
        if live and drain_s > 0:
            try:
                await asyncio.wait_for(self._idle.wait(), drain_s)
            except TimeoutError:
                logger.warning("%d requests did not finish within %g s", len(live), drain_s)
        error = UnavailableError("the server is shutting down; the request was ended")
        self._outputs.end_all(error)
        await self._host.stop()
        self.tokenizer.close()

    def submit(self, request: Request) -> GenerationStream:
        """Queue a request.

        Raises:
            OverloadedError: the queue is full.
            UnavailableError: shutting down, or the engine is dead.
        """
        self.check_health()
        if self._draining:
            raise UnavailableError("the server is shutting down")
        if request.adapter:
            request = replace(request, adapter=self._adapters.current(request.adapter))
        self._check_queue(request)
        generation = self._generation(request)
        stream = GenerationStream(generation, self.abort)
        self._outputs.begin(generation, stream)
        self._idle.clear()
        return stream

    def _generation(self, request: Request) -> Generation:
        times = RequestTimes(request, self.metrics.of(_label(request)), self._clock())
        if request.search is None:
            return PlainGeneration(
                request,
                tokenizer=self.tokenizer,
                send=self._host.send,
                ended=self._outputs.end,
                times=times,
            )
        return AsyncSearch(
            request,
            input_processor=self.input_processor,
            evaluators=self._evaluators,
            send=self._host.send,
            ended=self._outputs.end,
            times=times,
        )

    def abort(self, request_id: str) -> None:
        """End a request now; unknown or finished ids are ignored."""
        generation = self._outputs.live.get(request_id)
        if generation is not None:
            self._outputs.end(generation)

    @property
    def adapters(self) -> Mapping[str, ServedAdapter]:
        """Those that requests may name, by name."""
        return self._adapters.known

    async def load_adapter(
        self, name: str, folder: Path, *, created: int, replace: bool = False
    ) -> ServedAdapter:
        """Load an adapter, which requests may name from then on; steps go on meanwhile.

        `created`: Unix time in seconds. `replace`: requests that run keep the old one of the name.

        Raises:
            RequestError: it cannot be read, is not for this model, or there are too many.
            UnavailableError: the engine has failed.
        """
        self.check_health()
        with self._adapters.loading(name, replace=replace) as key:
            try:
                await self._host.load_adapter(key, folder)
            except ConfigurationError as error:
                # The operator reads where; callers need not know the server's folders.
                logger.warning("adapter %s: %s", name, error)
                said = str(error).replace(f"{folder}/", "").replace(str(folder), "the adapter")
                raise RequestError(said, param="lora_path", code="invalid_parameter") from error
            adapter = ServedAdapter(name=name, key=key, created=created)
            self._adapters.add(adapter, self._live_adapters())
        return adapter

    def unload_adapter(self, name: str) -> None:
        """Serve an adapter no more; requests that run keep it until they end.

        Raises:
            NotFoundError: there is none of this name.
        """
        self._adapters.remove(name, self._live_adapters())

    def _live_adapters(self) -> set[str]:
        return {generation.request.adapter for generation in self._outputs.live.values()}

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
        config, owner, live = self.config, request.owner, self._outputs.live.values()
        owners = {generation.request.owner for generation in live} | {owner}
        waits = [g for g in live if g.times is None or g.times.first_token_s is None]

        def admits(held: list[tuple[str, int]], new: int, limit: int) -> bool:
            total = sum(count for _, count in held) + new
            own = sum(count for name, count in held if name == owner) + new
            return total <= limit or (total <= 2 * limit and own * len(owners) <= limit)

        sequences = [(g.request.owner, g.sequences) for g in live]
        tokens = [(g.request.owner, g.request.prompt_tokens) for g in waits]
        present = sum(count for _, count in sequences)
        retry_after_s = self._retry_after_s(present)
        limit = config.max_running + config.max_queued_requests
        if not admits(sequences, request.sequences, limit):
            raise OverloadedError(
                f"{present} sequences are running or waiting and this request adds "
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
        """Deliver the outputs of one step."""
        if rows:
            self.metrics.iteration_tokens.observe(rows)
        self._outputs.feed(outputs, self._clock())

    def _unreadable(self, generation: Generation, exception: BaseException) -> PenstockError:
        request_id = generation.request.id
        logger.error("the output of request %s could not be read", request_id, exc_info=exception)
        return PenstockError("the output could not be read")

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._outputs.end_all(
            EngineDeadError("the engine has failed; the request could not be finished")
        )

    def _ended(self, generation: Generation, error: PenstockError | None) -> None:
        """Write the metrics of a request that has ended."""
        if not self._outputs.live:
            self._idle.set()
        if generation.request.adapter:
            self._adapters.ended(generation.request.adapter, self._live_adapters())
        reason = "error" if error is not None else generation.reason
        self.metrics.ended(_label(generation.request), reason)
        if generation.times is None:
            return
        now_s = self._clock()
        generation.times.ended(generation.usage, now_s)
        if reason in ("stop", "length"):
            elapsed_s = now_s - generation.times.submitted_s
            self._mean_request_s += 0.1 * (elapsed_s - self._mean_request_s)


def _label(request: Request) -> str:
    """Names of the decoding methods used: a bounded set of labels, those of the registry."""
    return "+".join(sorted(c.method.name for c in request.methods.chosen)) or "plain"
