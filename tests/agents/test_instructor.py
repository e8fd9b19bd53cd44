"""Instructor: a model's class as the answer, by a call, by a schema, and whole or in parts."""

from collections.abc import Iterator
from typing import Any

import instructor
import openai
import pytest
from instructor import Mode
from pydantic import field_validator

from tests.agents.relay import Relay
from tests.agents.world import ASK, MAX_TOKENS, MODEL, Convert, GetWeather, Report, World

SHORT: dict[str, Any] = {
    "model": MODEL,
    "temperature": 0,
    "max_tokens": MAX_TOKENS,
    "max_retries": 0,
}


@pytest.fixture
def sdk(relay: Relay) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{relay.url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON_SCHEMA])
def test_response_model_is_validated(sdk: openai.OpenAI, mode: Mode) -> None:
    client = instructor.from_openai(sdk, mode=mode)
    report = client.chat.completions.create(messages=ASK, response_model=Report, **SHORT)

    assert isinstance(report, Report)


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.JSON_SCHEMA])
def test_streamed_parts_grow_into_the_whole(sdk: openai.OpenAI, mode: Mode) -> None:
    client = instructor.from_openai(sdk, mode=mode)
    parts = list(
        client.chat.completions.create_partial(messages=ASK, response_model=Report, **SHORT)
    )

    assert len(parts) > 1
    Report.model_validate(parts[-1].model_dump())


def test_two_tools_then_a_report(sdk: openai.OpenAI, relay: Relay, world: World) -> None:
    client = instructor.from_openai(sdk, mode=Mode.TOOLS)
    messages = list(ASK)
    for model, name in ((GetWeather, "get_weather"), (Convert, "convert")):
        found, raw = client.chat.completions.create_with_completion(
            messages=messages, response_model=model, **SHORT
        )
        message = raw.choices[0].message
        result = world.call(name, found.model_dump_json())
        tool = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": result}
        messages += [message.model_dump(), tool]
    report = client.chat.completions.create(messages=messages, response_model=Report, **SHORT)

    assert isinstance(report, Report)
    assert relay.exchanges[-1].roles == ["user", *["assistant", "tool"] * 2]


def test_refused_report_is_asked_for_again(sdk: openai.OpenAI, relay: Relay) -> None:
    refused: list[str] = []

    class Doubted(Report):
        @field_validator("title")
        @classmethod
        def _doubt_once(cls, title: str) -> str:
            if not refused:
                refused.append(title)
                raise ValueError("is doubtful; say it again")
            return title

    client = instructor.from_openai(sdk, mode=Mode.TOOLS)
    options = {**SHORT, "max_retries": 1}
    report = client.chat.completions.create(messages=ASK, response_model=Doubted, **options)

    assert isinstance(report, Report)
    assert [exchange.roles for exchange in relay.exchanges] == [
        ["user"],
        ["user", "assistant", "tool"],
    ]
