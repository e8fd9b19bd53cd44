"""Pydantic AI: each way to ask for a report, and agents that are told which tool is next."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic_ai import Agent, ModelRetry, NativeOutput, RunContext, ToolOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tests.agents.relay import Relay
from tests.agents.world import MAX_TOKENS, MODEL, ORDER, QUESTION, SYSTEM, Report, World

ONE_EACH = [[name] for name in ORDER]


@dataclass
class Forced(AbstractCapability[Any]):
    """Forces one of some tools a step, and none after the last."""

    steps: Sequence[list[str]]

    def get_model_settings(self) -> Callable[[RunContext[Any]], ModelSettings]:
        def settings(context: RunContext[Any]) -> ModelSettings:
            step = context.run_step - 1
            return {"tool_choice": self.steps[step] if step < len(self.steps) else "none"}

        return settings


def agent_of(
    relay: Relay,
    world: World | None = None,
    output: Any = str,
    steps: Sequence[list[str]] = ONE_EACH,
    profile: OpenAIModelProfile | None = None,
    retries: int = 0,
) -> Agent[Any, Any]:
    """An agent whose calls are forced, where it has tools."""
    provider = OpenAIProvider(base_url=f"{relay.url}/v1", api_key="none")
    return Agent(
        OpenAIChatModel(MODEL, provider=provider, profile=profile),
        output_type=output,
        system_prompt=SYSTEM,
        model_settings={"temperature": 0, "max_tokens": MAX_TOKENS},
        tools=[] if world is None else [world.get_weather, world.convert],
        capabilities=[] if world is None else [Forced(steps)],
        retries=retries,
    )


@pytest.mark.parametrize("form", [ToolOutput, NativeOutput])
def test_output_is_validated(relay: Relay, form: Any) -> None:
    assert isinstance(agent_of(relay, output=form(Report)).run_sync(QUESTION).output, Report)


def test_two_tools_then_an_answer(relay: Relay, world: World) -> None:
    answer = agent_of(relay, world).run_sync(QUESTION).output

    assert world.calls == ORDER
    assert isinstance(answer, str)
    assert answer
    assert relay.exchanges[-1].roles == ["system", "user", *["assistant", "tool"] * 2]


@pytest.mark.parametrize("form", [ToolOutput, NativeOutput])
def test_two_tools_then_a_report(relay: Relay, world: World, form: Any) -> None:
    result = agent_of(relay, world, form(Report)).run_sync(QUESTION)

    assert world.calls == ORDER
    assert isinstance(result.output, Report)


@pytest.mark.parametrize(("form", "told"), [(ToolOutput, "tool"), (NativeOutput, "user")])
def test_refused_report_is_asked_for_again(relay: Relay, form: Any, told: str) -> None:
    agent = agent_of(relay, output=form(Report), retries=1)

    @agent.output_validator
    def doubt_once(report: Report) -> Report:
        if len(relay.exchanges) == 1:
            raise ModelRetry("That is doubtful; say it again.")
        return report

    assert isinstance(agent.run_sync(QUESTION).output, Report)
    first, second = relay.exchanges
    assert second.roles[: len(first.roles) + 1] == [*first.roles, "assistant"]
    assert second.roles[-1] == told


def test_some_tools_are_allowed(relay: Relay, world: World) -> None:
    profile = OpenAIModelProfile(openai_chat_supports_allowed_tools=True)
    agent = agent_of(relay, world, ToolOutput(Report), [ORDER], profile)

    assert isinstance(agent.run_sync(QUESTION).output, Report)
    assert len(world.calls) == 1
    assert relay.exchanges[0].body["tool_choice"]["type"] == "allowed_tools"


def test_streamed_run_tells_calls_results_and_answer_in_order(relay: Relay, world: World) -> None:
    async def main() -> list[Any]:
        async with agent_of(relay, world).run_stream_events(QUESTION) as stream:
            return [event async for event in stream]

    kinds = [event.event_kind for event in asyncio.run(main())]

    assert world.calls == ORDER
    assert [kind for kind in kinds if kind != "part_delta"] == [
        *["part_start", "part_end", "function_tool_call", "function_tool_result"] * 2,
        *["part_start", "final_result", "part_end", "agent_run_result"],
    ]
    assert "part_delta" in kinds
