"""The official SDK: its helpers for structured output and streams, and a loop by hand."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.agents.relay import Relay
from tests.agents.world import (
    ASK,
    MAX_TOKENS,
    MODEL,
    ORDER,
    Convert,
    GetWeather,
    Report,
    World,
    named,
)

TOOLS = [
    openai.pydantic_function_tool(GetWeather, name="get_weather"),
    openai.pydantic_function_tool(Convert, name="convert"),
]
SHORT: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": MAX_TOKENS}


@pytest.fixture
def client(relay: Relay) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{relay.url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def test_parse_makes_an_object_of_the_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(messages=ASK, response_format=Report, **SHORT)

    assert isinstance(answer.choices[0].message.parsed, Report)
    assert answer.choices[0].finish_reason == "stop"


def test_parse_makes_objects_of_arguments(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        messages=ASK, tools=TOOLS, tool_choice=named("convert"), **SHORT
    )

    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Convert)


def test_two_tools_then_a_report(client: openai.OpenAI, relay: Relay, world: World) -> None:
    messages = list(ASK)
    for name in ORDER:
        answer = client.chat.completions.create(
            messages=messages, tools=TOOLS, tool_choice=named(name), **SHORT
        )
        assert answer.choices[0].finish_reason == "tool_calls"
        message = answer.choices[0].message
        (call,) = message.tool_calls or []
        assert call.type == "function"
        result = world.call(call.function.name, call.function.arguments)
        messages += [message, {"role": "tool", "tool_call_id": call.id, "content": result}]
    answer = client.chat.completions.parse(
        messages=messages, tools=TOOLS, tool_choice="none", response_format=Report, **SHORT
    )

    assert world.calls == ORDER
    assert isinstance(answer.choices[0].message.parsed, Report)
    assert not answer.choices[0].message.tool_calls
    assert relay.exchanges[-1].roles == ["user", *["assistant", "tool"] * 2]


def test_streamed_calls_name_the_tool_first(client: openai.OpenAI, relay: Relay) -> None:
    with client.chat.completions.stream(
        messages=ASK, tools=TOOLS, tool_choice=named("convert"), **SHORT
    ) as stream:
        events = [event for event in stream if event.type != "chunk"]
        final = stream.get_final_completion()

    deltas = [e for e in events if e.type == "tool_calls.function.arguments.delta"]
    assert [event.type for event in events[:-1]] == [deltas[0].type] * len(deltas)
    assert {event.name for event in deltas} == {"convert"}
    done = events[-1]
    assert done.type == "tool_calls.function.arguments.done"
    assert "".join(event.arguments_delta for event in deltas) == done.arguments
    assert isinstance(done.parsed_arguments, Convert)
    (call,) = final.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == done.parsed_arguments
    assert final.choices[0].finish_reason == "tool_calls"
    first, *others = [
        part for delta in relay.exchanges[-1].deltas for part in delta.get("tool_calls", [])
    ]
    assert first["id"] == call.id
    assert (first["type"], first["function"]["name"]) == ("function", "convert")
    assert others
    assert all(set(part) == {"index", "function"} for part in others)
    assert all(set(part["function"]) == {"arguments"} for part in others)


def test_streamed_answer_is_parsed_at_its_end(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        messages=ASK, response_format=Report, stream_options={"include_usage": True}, **SHORT
    ) as stream:
        events = [event for event in stream if event.type != "chunk"]
        final = stream.get_final_completion()

    assert {event.type for event in events[:-1]} == {"content.delta"}
    assert events[-1].type == "content.done"
    assert isinstance(events[-1].parsed, Report)
    assert json.loads(events[-1].content) == events[-1].parsed.model_dump()
    assert final.usage is not None
