"""The thread behind submit, abort and stats: admission, aborts, crashes, shutdown."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from torch import Tensor

from penstock import LLM, SamplingParams
from penstock.engine.async_engine import AsyncEngine
from penstock.engine.build import build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.model.runner import ModelRunner
from penstock.engine.outputs.generation_stream import GenerationStream
from penstock.engine.requests.input import Input
from penstock.engine.requests.tokenizer import Tokenizer
from penstock.engine.state.request import Request
from penstock.engine.state.step import Step
from penstock.engine.transport.host import ThreadHost
from penstock.errors import EngineDeadError, OverloadedError, RequestError, UnavailableError
from tests.conftest import TinyModel

DEADLINE_S = 60.0
Body = Callable[[AsyncEngine], Coroutine[Any, Any, None]]


@pytest.fixture
def serve(tiny_model: TinyModel) -> Callable[..., None]:
    """Run a coroutine against a started engine and stop it afterwards."""

    def go(body: Body, **settings: Any) -> None:
        defaults: dict[str, Any] = {"model": str(tiny_model("llama")), "kv_cache_memory": 0.01}
        config = EngineConfig(**defaults | settings)
        engine = AsyncEngine.load(config, registry=CollectorRegistry(), clock=time.perf_counter)

        async def main() -> None:
            engine.start()
            try:
                await asyncio.wait_for(body(engine), DEADLINE_S)
            finally:
                await engine.stop()

        asyncio.run(main())
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.pages_in_use) == (0, 0, 0)

    return go


_ids = itertools.count()


def request(engine: AsyncEngine, prompt: str = "hello", **fields: Any) -> Request:
    defaults: dict[str, Any] = {"ignore_eos": True, "seed": 1, "max_tokens": 8}
    params = SamplingParams(**defaults | fields)
    return engine.input_processor.prepare(
        Input(request_id=f"q{next(_ids)}", prompt=prompt, params=params)
    )


def test_a_tokenizer_that_fails_ends_its_request_alone(
    serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spell = Tokenizer.token_bytes

    def fails(self: Tokenizer, token_id: int) -> bytes:
        if token_id == 7:
            raise RequestError("the model's tokenizer fails on this input", code="tokenizer_error")
        return spell(self, token_id)

    async def body(engine: AsyncEngine) -> None:
        monkeypatch.setattr(Tokenizer, "token_bytes", fails)
        broken = engine.submit(request(engine, allowed_token_ids=[7]))
        sound = engine.submit(request(engine, allowed_token_ids=[65]))
        with pytest.raises(RequestError, match="tokenizer fails"):
            await read(broken)
        assert (await read(sound))[0]

    serve(body)


async def read(generation: GenerationStream) -> list[str]:
    texts = [""] * generation.request.n
    async for delta in generation:
        texts[delta.index] += delta.text
    return texts


def test_many_at_once_equal_one_at_a_time(
    serve: Callable[..., None], tiny_model: TinyModel
) -> None:
    llm = LLM(str(tiny_model("llama")), kv_cache_memory=0.01)
    prompts = [f"prompt number {i}" for i in range(64)]
    expected = [
        llm.generate(p, SamplingParams(max_tokens=8, seed=i, ignore_eos=True))[0].text
        for i, p in enumerate(prompts)
    ]

    async def body(engine: AsyncEngine) -> None:
        generations = [engine.submit(request(engine, p, seed=i)) for i, p in enumerate(prompts)]
        texts = await asyncio.gather(*(read(g) for g in generations))
        assert [t for (t,) in texts] == expected

    serve(body, max_running=16)


def test_abort_ends_the_iteration(serve: Callable[..., None]) -> None:
    async def body(engine: AsyncEngine) -> None:
        generation = engine.submit(request(engine, max_tokens=400))
        async for _ in generation:
            generation.abort()
        assert generation.usage.completion_tokens < 400

    serve(body)


def test_full_queue_is_refused_and_then_accepts_again(serve: Callable[..., None]) -> None:
    async def body(engine: AsyncEngine) -> None:
        kept = [engine.submit(request(engine, max_tokens=40)) for _ in range(4)]
        with pytest.raises(OverloadedError) as refused:
            engine.submit(request(engine))
        assert 1 <= refused.value.retry_after_s <= 60
        for generation in kept:
            await read(generation)
        await read(engine.submit(request(engine)))

    serve(body, max_running=2, max_queued_requests=2)


def test_choices_count_toward_the_queue(serve: Callable[..., None]) -> None:
    async def body(engine: AsyncEngine) -> None:
        first = engine.submit(request(engine, n=2))
        with pytest.raises(OverloadedError, match="adds 2"):
            engine.submit(request(engine, n=2))
        await read(first)

    serve(body, max_running=2, max_queued_requests=1)


def test_waiting_prompt_tokens_are_bounded(serve: Callable[..., None]) -> None:
    async def body(engine: AsyncEngine) -> None:
        first = engine.submit(request(engine, "x" * 80))
        with pytest.raises(OverloadedError, match="prompt tokens are waiting"):
            engine.submit(request(engine, "x" * 30))
        await read(first)
        await read(engine.submit(request(engine, "x" * 150)))

    serve(body, max_queued_tokens=100)


def test_a_crash_fails_the_waiting_and_refuses_the_next(
    serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(self: ModelRunner, step: Step) -> Tensor:
        raise MemoryError("secret detail")

    async def body(engine: AsyncEngine) -> None:
        generations = [engine.submit(request(engine, max_tokens=300)) for _ in range(3)]
        await anext(generations[0])
        monkeypatch.setattr(ModelRunner, "run", crash)
        for generation in generations:
            with pytest.raises(EngineDeadError) as died:
                await read(generation)
            assert "secret" not in str(died.value)
        with pytest.raises(EngineDeadError):
            engine.check_health()
        with pytest.raises(EngineDeadError):
            engine.submit(request(engine))

    serve(body)


def test_a_hanging_step_is_unhealthy(tiny_model: TinyModel) -> None:
    """The clock is ours, so nobody waits: a step that began long ago is a stall."""
    config = EngineConfig(model=str(tiny_model("llama")), kv_cache_memory=0.01, stall_s=5)
    now = [0.0]
    built = build_engine(config, lambda: now[0])
    entered, release = threading.Event(), threading.Event()
    run = built.engine.runner.run

    def hang(step: Any) -> Any:
        entered.set()
        release.wait(DEADLINE_S)
        return run(step)

    built.engine.runner.run = hang  # type: ignore[method-assign]
    engine = AsyncEngine(
        ThreadHost(built.engine, lambda: now[0]),
        built.info,
        built.input_processor,
        config,
        registry=CollectorRegistry(),
        clock=lambda: now[0],
    )

    async def main() -> None:
        engine.start()
        generation = engine.submit(request(engine))
        await asyncio.to_thread(entered.wait, DEADLINE_S)
        engine.check_health()
        now[0] += 6
        with pytest.raises(EngineDeadError, match="more than 5 s"):
            engine.check_health()
        release.set()
        await read(generation)
        engine.check_health()
        await engine.stop()

    asyncio.run(main())


def test_shutdown_lets_running_requests_finish(serve: Callable[..., None]) -> None:
    async def body(engine: AsyncEngine) -> None:
        generation = engine.submit(request(engine, max_tokens=30))
        stopping = asyncio.create_task(engine.stop(drain_s=DEADLINE_S))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="shutting down"):
            engine.submit(request(engine))
        await read(generation)
        assert generation.usage.completion_tokens == 30
        await stopping

    serve(body)


def test_shutdown_ends_what_takes_too_long(serve: Callable[..., None]) -> None:
    async def body(engine: AsyncEngine) -> None:
        generation = engine.submit(request(engine, max_tokens=480))
        await anext(generation)
        await engine.stop(drain_s=0.01)
        with pytest.raises(UnavailableError, match="shutting down"):
            await read(generation)

    serve(body)
