"""Searches on the event loop: together with others, ended from outside, in either kind of host."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from penstock import LLM, SamplingParams
from penstock.decoding.search.base import SearchContext
from penstock.decoding.search.operations import Answer, Evaluate, Free, Generate, Outcome
from penstock.engine.async_engine import AsyncEngine
from penstock.engine.config import EngineConfig
from penstock.engine.requests.input import Input
from penstock.engine.search.evaluators import Evaluator
from penstock.engine.state.request import Request
from penstock.errors import EvaluatorError, OverloadedError, PenstockError, UnavailableError
from penstock.registry import Registry
from tests.conftest import TinyModel
from tests.engine.searches import Body, Scripted, Steps
from tests.engine.test_async_engine import DEADLINE_S, read, request
from tests.engine.test_search import tree

Task = Callable[[AsyncEngine], Coroutine[Any, Any, None]]


async def lengths(problem: str, candidates: Sequence[str]) -> Sequence[float]:
    return [float(len(candidate)) for candidate in candidates]


async def broken(problem: str, candidates: Sequence[str]) -> Sequence[float]:
    return [float("nan")] * len(candidates)


async def never(problem: str, candidates: Sequence[str]) -> Sequence[float]:
    await asyncio.Event().wait()
    return []


EVALUATORS: dict[str, Evaluator] = {"lengths": lengths, "broken": broken, "never": never}


both = pytest.mark.parametrize("serve", ["thread", "process"], indirect=True)


@pytest.fixture
def serve(request: pytest.FixtureRequest, tiny_model: TinyModel) -> Callable[..., None]:
    """Run a coroutine against a started engine; nothing may be left behind."""

    def go(task: Task, **settings: Any) -> None:
        config = EngineConfig(
            model=str(tiny_model("llama")),
            kv_cache_memory=0.01,
            engine_in=getattr(request, "param", "thread"),
            **settings,
        )
        engine = AsyncEngine.load(
            config,
            registry=CollectorRegistry(),
            clock=time.perf_counter,
            evaluators=EVALUATORS,
        )

        async def main() -> None:
            engine.start()
            try:
                await asyncio.wait_for(task(engine), DEADLINE_S)
                await idle(engine)
            finally:
                await engine.stop()

        asyncio.run(main())

    return go


async def idle(engine: AsyncEngine) -> None:
    """Wait until nothing runs and nothing is held; fails by the test's deadline."""
    while True:
        stats = engine.stats()
        if (stats.running, stats.waiting, stats.pages_in_use) == (0, 0, 0):
            return
        await asyncio.sleep(0.01)


def search(engine: AsyncEngine, name: str, decoding: Any, **sampling: Any) -> Request:
    defaults: dict[str, Any] = {"seed": 7, "max_tokens": 12, "ignore_eos": True}
    params = SamplingParams(**defaults | sampling)
    return engine.input_processor.prepare(
        Input(request_id=name, prompt="The quick brown fox", params=params, decoding=decoding)
    )


def scripted(engine: AsyncEngine, body: Body) -> None:
    """Let requests of this engine name `scripted`."""
    methods = [*engine.input_processor.decoding.methods.values(), Scripted(body)]
    engine.input_processor = replace(engine.input_processor, decoding=Registry("decoding", methods))


@both
def test_the_same_as_offline(serve: Callable[..., None], tiny_model: TinyModel) -> None:
    llm = LLM(str(tiny_model("llama")), kv_cache_memory=0.01)
    methods: list[Any] = [{"best_of": {"n": 5}}, {"beam": {"width": 3}}]
    params = SamplingParams(seed=7, max_tokens=12, ignore_eos=True)
    expected = [
        llm.generate("The quick brown fox", params, decoding=decoding)[0].text
        for decoding in methods
    ]

    async def task(engine: AsyncEngine) -> None:
        running = [
            engine.submit(search(engine, f"s{i}", decoding)) for i, decoding in enumerate(methods)
        ]
        chats = [engine.submit(request(engine, f"chat {i}")) for i in range(4)]
        texts = await asyncio.gather(*(read(one) for one in running))
        assert [text for (text,) in texts] == expected
        await asyncio.gather(*(read(one) for one in chats))

    serve(task)


def test_nodes_come_before_the_answer(serve: Callable[..., None]) -> None:
    async def task(engine: AsyncEngine) -> None:
        decoding = {"best_of": {"n": 3, "rank": "evaluator", "evaluator": "lengths"}}
        generation = engine.submit(search(engine, "s", decoding))
        deltas = [delta async for delta in generation]
        assert [len(delta.nodes) for delta in deltas] == [3, 0]
        assert deltas[-1].finish_reason == "length"
        best = max(deltas[0].nodes, key=lambda node: len(node.text))
        assert deltas[-1].text == best.text
        assert generation.trace is not None
        assert generation.trace.nodes == deltas[0].nodes
        assert generation.usage.thoughts == 3

    serve(task)


def test_an_evaluator_that_fails_ends_its_search_alone(serve: Callable[..., None]) -> None:
    async def task(engine: AsyncEngine) -> None:
        chat = engine.submit(request(engine, "a chat"))
        decoding = {"best_of": {"n": 3, "rank": "evaluator", "evaluator": "broken"}}
        with pytest.raises(EvaluatorError, match="'broken'"):
            await read(engine.submit(search(engine, "s", decoding)))
        (text,) = await read(chat)
        assert text

    serve(task)


def test_time_ends_a_search_that_waits_for_an_evaluator(serve: Callable[..., None]) -> None:
    async def task(engine: AsyncEngine) -> None:
        decoding = {
            "best_of": {
                "n": 3,
                "rank": "evaluator",
                "evaluator": "never",
                "budget": {"seconds": 0.2},
            }
        }
        generation = engine.submit(search(engine, "s", decoding))
        (text,) = await read(generation)
        assert text  # the first of three, of which none was judged
        assert generation.trace is not None
        assert generation.trace.exhausted == "seconds"

    serve(task)


def test_a_controller_that_breaks_fails_its_request_alone(
    serve: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    def body(context: SearchContext) -> Steps:
        yield Evaluate(name="lengths", problem="", candidates=("a",))
        raise ZeroDivisionError

    async def task(engine: AsyncEngine) -> None:
        scripted(engine, body)
        chat = engine.submit(request(engine, "a chat"))
        with pytest.raises(PenstockError, match="the search has failed"):
            await read(engine.submit(search(engine, "s", "scripted")))
        await read(chat)

    serve(task)
    assert "ZeroDivisionError" in caplog.text


@both
def test_cancelled_at_random_moments_nothing_stays(serve: Callable[..., None]) -> None:
    """Half of the trees, while the others and some chats go on unharmed."""
    chooser = random.Random(11)

    async def task(engine: AsyncEngine) -> None:
        scripted(engine, tree)
        alone = await read(engine.submit(request(engine, "a chat", seed=5)))
        chats = [engine.submit(request(engine, "a chat", seed=5)) for _ in range(8)]
        trees = [engine.submit(search(engine, f"t{i}", "scripted")) for i in range(16)]

        async def cancel(number: int) -> None:
            for _ in range(chooser.randrange(60)):
                await asyncio.sleep(0.001)
            trees[number].abort()

        await asyncio.gather(*(cancel(i) for i in range(0, 16, 2)))
        finished = await asyncio.gather(*(read(trees[i]) for i in range(1, 16, 2)))
        assert finished == [["end"]] * 8
        assert await asyncio.gather(*(read(chat) for chat in chats)) == [alone] * 8

    serve(task)


def test_a_search_counts_as_the_sequences_that_it_may_run(serve: Callable[..., None]) -> None:
    async def task(engine: AsyncEngine) -> None:
        first = engine.submit(search(engine, "a", {"best_of": {"n": 2}}, max_tokens=400))
        with pytest.raises(OverloadedError, match="this request adds 4"):
            engine.submit(search(engine, "b", {"best_of": {"n": 2}}))
        first.abort()
        assert await read(first) == [""]

    serve(task, max_running=4, search_sequences=4, max_queued_requests=1)


@both
def test_stopping_ends_searches_with_an_error(serve: Callable[..., None]) -> None:
    async def task(engine: AsyncEngine) -> None:
        scripted(engine, tree)
        running = engine.submit(search(engine, "s", "scripted"))
        await engine.stop(0.0)
        with pytest.raises(UnavailableError):
            await read(running)

    serve(task)


def test_what_is_freed_last_is_free(serve: Callable[..., None]) -> None:
    def body(context: SearchContext) -> Steps:
        two = yield Generate(state=context.prompt, count=2, max_tokens=4, keep=True)
        yield Free(states=tuple(one.state for one in two))
        return Outcome(answers=())

    async def task(engine: AsyncEngine) -> None:
        scripted(engine, body)
        assert await read(engine.submit(search(engine, "s", "scripted"))) == [""]

    serve(task)


def test_an_answer_without_a_model(serve: Callable[..., None]) -> None:
    """A controller may need nothing of the engine; choices that it has no answer for are empty."""

    def body(context: SearchContext) -> Steps:
        return Outcome(answers=(Answer(text=context.problem.upper()),))
        yield  # a generator all the same

    async def task(engine: AsyncEngine) -> None:
        scripted(engine, body)
        texts = await read(engine.submit(search(engine, "s", "scripted", n=2)))
        assert texts == ["THE QUICK BROWN FOX", ""]

    serve(task)
