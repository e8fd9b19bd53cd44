"""The embedded model, as `penstock serve` without arguments serves it."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server.process import ServeProcess

STREAMS = 64
TOKENS = 200
"""Long enough that no answer is done before a client has sent all requests, and for the cache."""
BEGINNINGS = ["Once upon a time", "The little fox", "Anna had a red ball", "One morning"]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    log = tmp_path_factory.mktemp("nano") / "log"
    with ServeProcess(["--kv-cache-memory", "100000000", "--threads", "1"], log) as running:
        yield running


@pytest.fixture
def sdk(nano: ServeProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{nano.url}/v1", api_key="x", max_retries=0) as client:
        yield client
    nano.wait_idle()


def call(number: int) -> dict[str, Any]:
    return {
        "model": "nano",
        "prompt": f"{BEGINNINGS[number % 4]}{' and' * (number // 4)}",
        "max_tokens": TOKENS,
        "temperature": 0.0 if number % 2 else 0.9,
        "seed": number,
        "extra_body": {"ignore_eos": True},
    }


def test_it_is_listed_and_answers(sdk: openai.OpenAI) -> None:
    (model,) = sdk.models.list().data
    assert model.id == "nano"
    answer = sdk.chat.completions.create(
        model="nano",
        messages=[{"role": "user", "content": "Tell me a story."}],
        max_tokens=24,
        temperature=0,
    )
    content = answer.choices[0].message.content
    assert content is not None
    assert len(content.split()) > 5
    chunks = sdk.chat.completions.create(
        model="nano",
        messages=[{"role": "user", "content": "Tell me a story."}],
        max_tokens=24,
        temperature=0,
        stream=True,
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == content


def test_its_template_refuses_in_a_sentence(sdk: openai.OpenAI) -> None:
    """Empty content is fine; nothing that a caller says makes a 500."""
    answer = sdk.chat.completions.create(
        model="nano", messages=[{"role": "user", "content": ""}], max_tokens=1
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1


@pytest.mark.slow
def test_64_streams_at_once(nano: ServeProcess, sdk: openai.OpenAI) -> None:
    """None fails, none is starved, and each says what it says alone."""
    order: list[tuple[int, str]] = []

    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        text = ""
        async for chunk in await client.completions.create(stream=True, **call(number)):
            order.append((number, "token"))
            text += chunk.choices[0].text
        order.append((number, "end"))
        return text

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{nano.url}/v1", api_key="x", max_retries=0
        ) as client:
            return await asyncio.gather(*(one(client, number) for number in range(STREAMS)))

    texts = asyncio.run(together())
    first_end = next(i for i, (_, event) in enumerate(order) if event == "end")
    assert {number for number, _ in order[:first_end]} == set(range(STREAMS))
    for number in range(STREAMS):
        assert texts[number] == sdk.completions.create(**call(number)).choices[0].text


def test_log_says_what_was_started(nano: ServeProcess) -> None:
    log = nano.log
    assert "ready: serving nano" in log
    assert "KV cache" in log
    assert "Loading weights" not in log  # no progress bars where there is no terminal
    assert "Traceback" not in log
