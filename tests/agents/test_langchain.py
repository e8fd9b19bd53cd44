"""LangChain: its chat model with structured output, and the agent of LangGraph above it."""

from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI

from tests.agents.relay import Relay
from tests.agents.world import MAX_TOKENS, MODEL, ORDER, QUESTION, SYSTEM, Report, World

ASK: Any = {"messages": [("user", QUESTION)]}
BOUND: Any = {"recursion_limit": 8}  # a tool that cannot be called would be tried forever


def chat(relay: Relay) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{relay.url}/v1",
        api_key="none",
        model=MODEL,
        temperature=0,
        max_tokens=MAX_TOKENS,
        max_retries=0,
    )


def agent_of(relay: Relay, world: World, form: Any = None) -> Any:
    """An agent whose calls are forced, one after the other; `form`: how it reports in the end."""

    @wrap_model_call
    def forced(request: Any, handler: Callable[[Any], Any]) -> Any:
        called = len(world.calls)
        if called == len(ORDER):
            return handler(
                request.override(tools=[] if form else request.tools, tool_choice="none")
            )
        return handler(request.override(tool_choice=ORDER[called], response_format=None))

    tools = [StructuredTool.from_function(tool) for tool in (world.get_weather, world.convert)]
    return create_agent(
        chat(relay), tools, system_prompt=SYSTEM, middleware=[forced], response_format=form
    )


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_validated(relay: Relay, method: Any) -> None:
    report = chat(relay).with_structured_output(Report, method=method).invoke(QUESTION)

    assert isinstance(report, Report)


def test_strict_structured_output_is_streamed(relay: Relay) -> None:
    reports = list(chat(relay).with_structured_output(Report, strict=True).stream(QUESTION))

    assert isinstance(reports[-1], Report)


def test_two_tools_then_an_answer(relay: Relay, world: World) -> None:
    state = agent_of(relay, world).invoke(ASK, BOUND)

    assert world.calls == ORDER
    assert [message.type for message in state["messages"]] == ["human", *["ai", "tool"] * 2, "ai"]
    assert state["messages"][-1].content
    assert relay.exchanges[-1].roles == ["system", "user", *["assistant", "tool"] * 2]


@pytest.mark.parametrize("form", [ProviderStrategy, ToolStrategy])
def test_two_tools_then_a_report(relay: Relay, world: World, form: Any) -> None:
    state = agent_of(relay, world, form(Report)).invoke(ASK, BOUND)

    assert world.calls == ORDER
    assert isinstance(state["structured_response"], Report)


def test_streamed_run_tells_calls_results_and_answer_in_order(relay: Relay, world: World) -> None:
    seen: list[str] = []
    for message, _ in agent_of(relay, world).stream(ASK, BOUND, stream_mode="messages"):
        chunks = getattr(message, "tool_call_chunks", [])
        seen += [chunk["name"] or "arguments" for chunk in chunks]
        if message.content:
            seen.append("result" if message.type == "tool" else "text")

    changes = [kind for kind, before in zip(seen, ["", *seen], strict=False) if kind != before]
    assert changes == [
        *["get_weather", "arguments", "result"],
        *["convert", "arguments", "result", "text"],
    ]
    assert world.calls == ORDER
