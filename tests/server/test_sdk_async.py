"""The official client's asynchronous face: many at once, and leaving in the middle."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.conftest import MODEL
from tests.server.process import ServeProcess
from tests.tiny import byte_tokenizer

ASCII = [byte_tokenizer().encode(chr(c))[0] for c in range(32, 127)]
PLAIN: dict[str, Any] = {"allowed_token_ids": ASCII, "ignore_eos": True}
LONG: dict[str, Any] = {"model": MODEL, "max_tokens": 480, "extra_body": PLAIN}
STREAMS = 64


@pytest.fixture(scope="module")
def slow_server(
    slow_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServeProcess]:
    """One that still works on an answer when its caller leaves."""
    arguments = [str(slow_llama), "--served-model-name", MODEL, "--threads", "1"]
    arguments += ["--kv-cache-memory", "64000000"]
    log = tmp_path_factory.mktemp("slow") / "log"
    with ServeProcess(arguments, log) as running:
        yield running


@asynccontextmanager
async def connected(server: ServeProcess) -> AsyncGenerator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60
    ) as client:
        yield client


def test_many_streams_say_what_one_alone_says(server: ServeProcess, client: openai.OpenAI) -> None:
    def call(number: int) -> dict[str, Any]:
        return {
            "model": MODEL,
            "prompt": f"Prompt {number}: " + "x" * number,
            "max_tokens": 8 + number % 7,
            "temperature": 0.0 if number % 2 else 1.2,
            "seed": number,
            "extra_body": PLAIN,
        }

    async def one(sdk: openai.AsyncOpenAI, number: int) -> str:
        stream = await sdk.completions.create(stream=True, **call(number))
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_at_once() -> list[str]:
        async with connected(server) as sdk:
            return await asyncio.gather(*(one(sdk, number) for number in range(STREAMS)))

    together = asyncio.run(all_at_once())
    alone = [client.completions.create(**call(n)).choices[0].text for n in range(STREAMS)]
    assert together == alone


def test_chats_and_completions_mix(server: ServeProcess) -> None:
    async def mixed() -> None:
        async with connected(server) as sdk:
            chats = [
                sdk.chat.completions.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": "Hello"}],
                    max_tokens=8,
                    temperature=0,
                    extra_body=PLAIN,
                )
                for _ in range(8)
            ]
            texts = [
                sdk.completions.create(
                    model=MODEL, prompt="Hello", max_tokens=8, temperature=0, extra_body=PLAIN
                )
                for _ in range(8)
            ]
            answers = await asyncio.gather(*chats, *texts)
            assert len({a.choices[0].message.content for a in answers[:8]}) == 1  # type: ignore[union-attr]

    asyncio.run(mixed())


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_leaving_a_stream_frees_everything(slow_server: ServeProcess, kind: str) -> None:
    async def leave() -> None:
        async with connected(slow_server) as sdk:
            if kind == "chat":
                stream: Any = await sdk.chat.completions.create(
                    messages=[{"role": "user", "content": "x"}], n=4, stream=True, **LONG
                )
            else:
                stream = await sdk.completions.create(prompt=["x", "y"], n=2, stream=True, **LONG)
            for _ in range(6):
                await anext(stream)
            assert slow_server.metrics()["penstock_num_requests_running"] > 0
            await stream.close()
            # The connection is gone, the client lives on.
            await asyncio.to_thread(slow_server.wait_idle)

    asyncio.run(leave())


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_leaving_a_whole_answer_frees_everything(slow_server: ServeProcess, kind: str) -> None:
    async def leave() -> None:
        async with connected(slow_server) as sdk:
            if kind == "chat":
                call = sdk.chat.completions.create(
                    messages=[{"role": "user", "content": "x"}], n=4, **LONG
                )
            else:
                call = sdk.completions.create(prompt=["x", "y"], n=2, **LONG)
            task = asyncio.create_task(call)  # type: ignore[arg-type]
            while (await asyncio.to_thread(slow_server.metrics))[
                "penstock_num_requests_running"
            ] == 0:
                assert not task.done()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            before = slow_server.metrics()["penstock_engine_steps_total"]
            await asyncio.to_thread(slow_server.wait_idle)
            # Aborted, not finished: a run to the end would take hundreds of steps.
            assert slow_server.metrics()["penstock_engine_steps_total"] - before < 200

    asyncio.run(leave())


def test_leaving_while_waiting_in_the_queue(slow_server: ServeProcess) -> None:
    """More than may run at once: those that wait can leave as well."""

    async def leave() -> None:
        async with connected(slow_server) as sdk:
            tasks = [
                asyncio.create_task(sdk.completions.create(prompt="x", n=40, **LONG))
                for _ in range(4)
            ]
            while (await asyncio.to_thread(slow_server.metrics))[
                "penstock_num_requests_waiting"
            ] == 0:
                assert not any(task.done() for task in tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(slow_server.wait_idle)

    asyncio.run(leave())


def test_callers_come_and_go(server: ServeProcess) -> None:
    """Many at once, of all kinds; some leave at odd moments. No 5xx, and nothing is left behind."""
    dice = random.Random(5)
    bodies: list[dict[str, Any]] = [
        {
            "prompt": ["p" * dice.randint(1, 300) for _ in range(dice.randint(1, 3))],
            "max_tokens": dice.randint(1, 100),
            "n": dice.randint(1, 3),
            "stream": dice.random() < 0.6,
            "echo": dice.random() < 0.3,
            "logprobs": dice.choice([None, 3]),
            "temperature": dice.random(),
            "ignore_eos": True,
        }
        for _ in range(120)
    ]
    patience_s = [dice.choice([0.01, 0.1, 0.5, 60, 60]) for _ in bodies]
    statuses: list[int] = []

    async def one(client: httpx.AsyncClient, body: dict[str, Any], wait_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(wait_s),
                client.stream("POST", "/v1/completions", json=body) as answer,
            ):
                statuses.append(answer.status_code)
                content = await answer.aread()
                assert not body["stream"] or content.endswith(b"data: [DONE]\n\n")

    async def all_at_once() -> None:
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            await asyncio.gather(
                *(one(client, *pair) for pair in zip(bodies, patience_s, strict=True))
            )

    asyncio.run(all_at_once())
    assert set(statuses) == {200}
    assert len(statuses) > 20
    server.wait_idle()
    assert "Traceback" not in server.log
