"""LiteLLM, which takes the server for OpenAI's, and puts streams together itself."""

from typing import Any

import litellm
import pytest

from tests.agents.relay import Relay
from tests.agents.world import ASK, MAX_TOKENS, MODEL, ORDER, TOOLS, Report, World, named


def complete(relay: Relay, **options: Any) -> Any:
    return litellm.completion(
        model=f"openai/{MODEL}",
        api_base=f"{relay.url}/v1",
        api_key="none",
        temperature=0,
        max_tokens=MAX_TOKENS,
        num_retries=0,
        **options,
    )


@pytest.mark.parametrize("stream", [False, True])
def test_response_format_is_a_model(relay: Relay, stream: bool) -> None:
    answer = complete(relay, messages=ASK, response_format=Report, stream=stream)
    if stream:
        answer = litellm.stream_chunk_builder(list(answer), messages=ASK)

    Report.model_validate_json(answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_two_tools_then_a_report(relay: Relay, world: World, stream: bool) -> None:
    messages = list(ASK)
    for name in ORDER:
        answer = complete(
            relay, messages=messages, tools=TOOLS, tool_choice=named(name), stream=stream
        )
        if stream:
            answer = litellm.stream_chunk_builder(list(answer), messages=messages)
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = answer.choices[0].message.tool_calls
        result = world.call(call.function.name, call.function.arguments)
        messages += [
            answer.choices[0].message,
            {"role": "tool", "tool_call_id": call.id, "content": result},
        ]
    answer = complete(
        relay, messages=messages, tools=TOOLS, tool_choice="none", response_format=Report
    )

    assert world.calls == ORDER
    Report.model_validate_json(answer.choices[0].message.content)
    assert relay.exchanges[-1].roles == ["user", *["assistant", "tool"] * 2]


def test_streamed_calls_name_the_tool_first(relay: Relay) -> None:
    stream = complete(relay, messages=ASK, tools=TOOLS, tool_choice=named("convert"), stream=True)
    parts = [part for chunk in stream for part in chunk.choices[0].delta.tool_calls or []]

    assert parts[0].id
    assert parts[0].function.name == "convert"
    assert len(parts) > 1
    assert {part.function.name for part in parts[1:]} == {None}
