"""The engine in a process of its own: the same answers, and no process outlives the other."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import psutil
import pytest
from prometheus_client import CollectorRegistry

from penstock import LLM, SamplingParams
from penstock.decoding.constraint.grammar import Grammar
from penstock.engine.async_engine import AsyncEngine
from penstock.engine.build import Built
from penstock.engine.config import EngineConfig
from penstock.engine.requests.input import Input
from penstock.engine.state.messages import Abort, Inbox
from penstock.engine.state.pictures import Picture, PixelArray
from penstock.engine.state.request import BROKEN, ChoiceDelta, Request, StepOutput, TokenLogprobs
from penstock.engine.transport.compiling import Compiling
from penstock.engine.transport.sent_pictures import SentPictures
from penstock.engine.transport.wire import (
    Aborted,
    Frames,
    Stepped,
    Submitted,
    decode_from_engine,
    decode_to_engine,
    frame,
    pack_message,
    unpack_request,
)
from penstock.errors import ConfigurationError, EngineDeadError
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, prepare
from tests.engine.test_async_engine import DEADLINE_S, read, request

Body = Callable[[AsyncEngine, psutil.Process], Coroutine[Any, Any, None]]
Serve = Callable[..., AsyncEngine]


def children() -> list[psutil.Process]:
    return psutil.Process().children()


@pytest.fixture
def serve(tiny_model: TinyModel, caplog: pytest.LogCaptureFixture) -> Serve:
    """Run a coroutine against an engine in a process, which has ended afterwards."""

    def go(body: Body, **settings: Any) -> AsyncEngine:
        config = EngineConfig(
            model=str(tiny_model("llama")),
            kv_cache_memory=0.01,
            engine_in="process",
            threads=1,
            **settings,
        )
        before = children()
        engine = AsyncEngine.load(config, registry=CollectorRegistry(), clock=time.monotonic)
        # Another renders chat templates.
        started = (child for child in children() if child not in before)
        (process,) = (
            child for child in started if "penstock.engine.transport.child" in child.cmdline()
        )

        async def main() -> None:
            engine.start()
            try:
                await asyncio.wait_for(body(engine, process), DEADLINE_S)
            finally:
                await engine.stop()

        asyncio.run(main())
        assert process.pid not in [child.pid for child in children()]
        assert not any("it is killed" in record.message for record in caplog.records)
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.pages_in_use) == (0, 0, 0)
        return engine

    return go


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_answers_are_those_of_the_same_process(
    dtype: str, serve: Serve, tiny_model: TinyModel
) -> None:
    llm = LLM(str(tiny_model("llama")), kv_cache_memory=0.01, kv_cache_dtype=dtype)
    prompts = [f"prompt number {i}" for i in range(8)]
    params = [
        SamplingParams(max_tokens=8, seed=i, ignore_eos=True, logprobs=2, prompt_logprobs=1)
        for i in range(8)
    ]
    expected = llm.generate(prompts, params)

    async def everything(engine: AsyncEngine, index: int) -> list[ChoiceDelta]:
        generation = engine.submit(
            engine.input_processor.prepare(
                Input(
                    request_id=f"p{index}",
                    prompt=prompts[index],
                    params=params[index],
                    decoding="plain",
                    logprobs=2,
                    prompt_logprobs=1,
                )
            )
        )
        deltas = [delta async for delta in generation]
        found, wanted = generation.prompt_logprobs, expected[index].prompt_logprobs
        assert found is not None
        assert wanted is not None
        chosen = [next(iter(at.items())) for at in wanted if at is not None]
        assert [e.token_id for e in found] == [token for token, _ in chosen]
        assert [e.logprob for e in found] == pytest.approx([e.logprob for _, e in chosen], abs=1e-4)
        return deltas

    async def body(engine: AsyncEngine, process: psutil.Process) -> None:
        found = await asyncio.gather(*(everything(engine, i) for i in range(8)))
        for deltas, answer in zip(found, expected, strict=True):
            assert "".join(delta.text for delta in deltas) == answer.text
            logprobs = [entry for delta in deltas for entry in delta.logprobs]
            assert [e.token_id for e in logprobs] == answer.outputs[0].token_ids
            assert all(len(e.top) == 2 for e in logprobs)
        aborted = engine.submit(request(engine, max_tokens=400))
        process.suspend()  # it cannot be done before it hears of this
        aborted.abort()
        process.resume()
        assert await read(aborted) == [""]
        # A choice ended by its stop string on this side; the other one must hear of it.
        stop = expected[0].text[1:3]
        stopped = engine.submit(request(engine, prompts[0], max_tokens=300, stop=stop, seed=0))
        deltas = [delta async for delta in stopped]
        assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", stop)

    serve(body, kv_cache_dtype=dtype)


def test_only_what_concerns_a_request_waits_for_its_grammar(
    monkeypatch: pytest.MonkeyPatch, tiny_model: TinyModel
) -> None:
    built = build(tiny_model("llama"))
    form: Any = {"regex": "[a-f]{9}"}
    bound = prepare(built, "bound", Job(prompt=[1], params=SamplingParams(structured_outputs=form)))
    free = prepare(built, "free", Job(prompt=[1], params=SamplingParams()))
    broken = replace(bound, id="broken", grammar=Grammar(text="start: nobody", beginning=None))
    packed = [pack_message(each) for each in (bound, free, broken)]
    go, compile_now = threading.Event(), built.input_processor.grammars.compile

    def compile_later(text: str) -> Grammar:
        assert go.wait(DEADLINE_S)
        return compile_now(text)

    monkeypatch.setattr(built.input_processor.grammars, "compile", compile_later)
    inbox: Inbox = SimpleQueue()
    ready: Future[Built] = Future()
    ready.set_result(built)
    compiling = Compiling(inbox, ready)
    for message in (packed[0], Aborted("bound", 0), packed[1], Aborted("free", None), packed[2]):
        assert isinstance(message, Submitted | Aborted)
        compiling.put(message)
    assert inbox.get(timeout=DEADLINE_S) == free
    assert inbox.get(timeout=DEADLINE_S) == Abort(request_id="free", index=None)
    go.set()
    assert inbox.get(timeout=DEADLINE_S) == bound
    assert inbox.get(timeout=DEADLINE_S) == Abort(request_id="bound", index=0)
    # What cannot be compiled there ends its own request alone.
    last = inbox.get(timeout=DEADLINE_S)
    assert isinstance(last, Request)
    built.engine.add(last)
    (output,) = built.engine.step()
    assert (output.request_id, output.failure) == ("broken", BROKEN)


def test_grammars_are_those_of_the_same_process(serve: Serve, tiny_model: TinyModel) -> None:
    llm = LLM(str(tiny_model("llama")), kv_cache_memory=0.01)
    names = [f"n{i}" for i in range(400)]
    large = {"properties": {n: {"type": "string", "pattern": f"^{n}.*$"} for n in names}}
    fields: list[dict[str, Any]] = [
        {"structured_outputs": {"json": {"type": "object", "minProperties": 0, **large}}},
        {"structured_outputs": {"regex": "[a-f]{9}(x|y)"}},
        {},
    ]
    expected = [
        llm.generate("hello", SamplingParams(max_tokens=8, seed=1, ignore_eos=True, **f))
        for f in fields
    ]

    async def body(engine: AsyncEngine, process: psutil.Process) -> None:
        del process
        for _ in range(2):
            ended = engine.submit(request(engine, max_tokens=90, **fields[0]))
            ended.abort()  # before its grammar is compiled there
            found = await asyncio.gather(
                *(read(engine.submit(request(engine, **each))) for each in fields)
            )
            assert found == [[one.text] for (one,) in expected]

    serve(body)


@pytest.mark.parametrize(
    "kv_cache",
    [{"keynorm": {"low": 6, "recent": 5, "interval": 2}}, {"tova": {"keep": 0.3, "interval": 3}}],
    ids=["keynorm", "tova"],
)
def test_cache_policies_are_those_of_the_same_process(
    kv_cache: dict[str, Any], serve: Serve, tiny_model: TinyModel
) -> None:
    llm = LLM(str(tiny_model("llama")), kv_cache_memory=0.01)
    params = SamplingParams(max_tokens=24, seed=1, ignore_eos=True)
    (full,) = llm.generate("a prompt of some length", params)
    (expected,) = llm.generate("a prompt of some length", params, kv_cache=kv_cache)
    assert expected.outputs[0].token_ids != full.outputs[0].token_ids

    async def body(engine: AsyncEngine, process: psutil.Process) -> None:
        prepared = engine.input_processor.prepare(
            Input(
                request_id="r", prompt="a prompt of some length", params=params, kv_cache=kv_cache
            )
        )
        deltas = [delta async for delta in engine.submit(prepared)]
        found = [token for delta in deltas for token in delta.token_ids]
        assert found == list(expected.outputs[0].token_ids)

    serve(body)


def test_a_dead_process_fails_the_waiting_and_refuses_the_next(
    serve: Serve,
) -> None:
    async def body(engine: AsyncEngine, process: psutil.Process) -> None:
        process.suspend()  # it must not be done before it is killed
        generations = [engine.submit(request(engine, max_tokens=300)) for _ in range(3)]
        os.kill(process.pid, signal.SIGKILL)
        for generation in generations:
            with pytest.raises(EngineDeadError):
                await read(generation)
        with pytest.raises(EngineDeadError, match="its process has ended"):
            engine.check_health()
        with pytest.raises(EngineDeadError):
            engine.submit(request(engine))

    serve(body)


def test_a_stopped_process_is_unhealthy(serve: Serve) -> None:
    now = [0.0]

    async def body(engine: AsyncEngine, process: psutil.Process) -> None:
        await read(engine.submit(request(engine)))
        engine.check_health()
        process.suspend()
        try:
            generation = engine.submit(request(engine))
            now[0] = engine.config.stall_s + 1
            engine._clock = lambda: time.monotonic() + now[0]  # pyright: ignore[reportPrivateUsage]
            with pytest.raises(EngineDeadError, match="in one step"):
                engine.check_health()
        finally:
            process.resume()
        await read(generation)
        engine.check_health()

    serve(body)


def test_signals_to_the_whole_group_leave_it_running(
    serve: Serve,
) -> None:
    async def body(engine: AsyncEngine, process: psutil.Process) -> None:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        await read(engine.submit(request(engine)))

    serve(body)


SERVER = """
import os, sys, time
from penstock.decoding.constraint.grammar import Grammar
from penstock.engine.build import Built
from penstock.engine.config import EngineConfig
from penstock.engine.transport.process import ProcessHost
if sys.argv[2] == "loading":
    ProcessHost._wait_until_ready = lambda self: print(self._process.pid, flush=True) or os._exit(0)
host = ProcessHost(EngineConfig(model=sys.argv[1], kv_cache_memory=0.01), time.monotonic)
print(host._process.pid, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("moment", ["loading", "ready"])
def test_it_ends_when_the_server_is_gone(moment: str, tiny_model: TinyModel) -> None:
    command = [sys.executable, "-c", SERVER, str(tiny_model("llama")), moment]
    server = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    with suppress(psutil.NoSuchProcess):  # it may have been quicker
        psutil.Process(int(server.stdout)).wait(timeout=DEADLINE_S)


def test_a_model_that_cannot_be_served_is_refused_by_name(tiny_model: TinyModel) -> None:
    config = EngineConfig(model=str(tiny_model("llama")), max_model_len=4096, engine_in="process")
    before = children()
    with pytest.raises(ConfigurationError, match="--max-model-len"):
        AsyncEngine.load(config, registry=CollectorRegistry(), clock=time.monotonic)
    assert children() == before


def test_an_engine_that_never_started_ends_too(tiny_model: TinyModel) -> None:
    config = EngineConfig(
        model=str(tiny_model("llama")), kv_cache_memory=0.01, engine_in="process", threads=1
    )
    before = children()
    engine = AsyncEngine.load(config, registry=CollectorRegistry(), clock=time.monotonic)
    asyncio.run(engine.stop())
    assert children() == before


def test_requests_cross_the_wire_whole(tiny_model: TinyModel) -> None:
    llm = LLM(str(tiny_model("llama")), kv_cache_memory=0.01)
    input_processor = llm._input_processor  # pyright: ignore[reportPrivateUsage]
    params = SamplingParams(
        n=3,
        max_tokens=7,
        temperature=0.5,
        seed=2**63 - 1,
        stop=["a", "ß"],
        stop_token_ids=[5],
        logit_bias={"7": -3.5},
        bad_words=["no"],
        min_tokens=2,
    )
    sent = input_processor.prepare(
        Input(
            request_id="x",
            prompt="häl",
            params=params,
            logprobs=4,
            priority=-3,
            decoding={"plain": {}, "sparse_prefill": {"method": "hash", "buckets": 8}},
        )
    )
    (body,) = Frames().feed(frame(pack_message(sent)))
    message = decode_to_engine(body)
    assert isinstance(message, Submitted)
    assert unpack_request(message, input_processor.decoding, input_processor.kv_cache) == sent


def test_frames_come_whole_however_the_bytes_are_cut(tiny_model: TinyModel) -> None:
    stats = LLM(str(tiny_model("llama")), kv_cache_memory=0.01).stats()
    top = TokenLogprobs(token_id=1, logprob=-0.5, rank=1, top=((1, -0.5), (2, float("-inf"))))
    output = StepOutput(request_id="r", index=0, token_ids=(1, 2), logprobs=(top,))
    messages = [Stepped(taken=n, outputs=[output] * n, rows=n, stats=stats) for n in (0, 1, 50)]
    data = b"".join(frame(message) for message in messages)
    for size in (1, 3, 1000, len(data)):
        frames = Frames()
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        bodies = [body for piece in pieces for body in frames.feed(piece)]
        assert [decode_from_engine(body) for body in bodies] == messages


def test_arrays_of_a_picture_cross_the_socket_once() -> None:
    """Both ends forget alike, so that what is left out is always known."""
    chooser = random.Random(3)
    shown = [
        Picture(
            digest=bytes([i]),
            text="<p>",
            rows=1,
            arrays={"pixel_values": PixelArray(dtype="uint8", shape=(i,), data=bytes(i))},
        )
        for i in range(1, 9)
    ]
    ours, theirs = SentPictures(most_bytes=15), SentPictures(most_bytes=15)
    left_out = 0
    for _ in range(300):
        pictures = tuple(chooser.choices(shown, k=chooser.randrange(1, 4)))
        sent = ours.to_send(pictures)
        left_out += sum(not each.arrays for each in sent)
        assert theirs.received(sent) == pictures
    assert left_out > 100
