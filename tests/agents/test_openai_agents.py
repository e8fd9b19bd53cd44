"""OpenAI's agents, which keep the loop themselves; their chat model, since it speaks chats."""

import asyncio
from typing import Any

import openai
from agents import Agent, AgentHooks, ModelSettings, Runner, function_tool
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel

from tests.agents.relay import Relay
from tests.agents.world import MAX_TOKENS, MODEL, ORDER, QUESTION, SYSTEM, Report, World


class NextTool(AgentHooks[Any]):
    """Forces the tool that is the next one, and none after the last."""

    async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> None:
        del context, result
        choice = {"get_weather": "convert", "convert": "none"}[tool.name]
        agent.model_settings = agent.model_settings.resolve(ModelSettings(tool_choice=choice))


def agent_of(relay: Relay, world: World | None, **options: Any) -> Agent[Any]:
    """An agent with the world's tools, which are called in their order."""
    client = openai.AsyncOpenAI(base_url=f"{relay.url}/v1", api_key="none", max_retries=0)
    settings = ModelSettings(temperature=0, max_tokens=MAX_TOKENS)
    if world is not None:
        options["tools"] = [function_tool(world.get_weather), function_tool(world.convert)]
        options["hooks"] = NextTool()
        settings.tool_choice = ORDER[0]
    return Agent(
        name="weather",
        instructions=SYSTEM,
        model=OpenAIChatCompletionsModel(model=MODEL, openai_client=client),
        model_settings=settings,
        reset_tool_choice=False,
        **options,
    )


def test_output_type_is_validated(relay: Relay) -> None:
    async def main() -> Any:
        return await Runner.run(agent_of(relay, None, output_type=Report), QUESTION)

    assert isinstance(asyncio.run(main()).final_output, Report)


def test_two_tools_then_an_answer(relay: Relay, world: World) -> None:
    async def main() -> Any:
        return await Runner.run(agent_of(relay, world), QUESTION, max_turns=3)

    result = asyncio.run(main())

    assert world.calls == ORDER
    assert isinstance(result.final_output, str)
    assert result.final_output
    assert relay.exchanges[-1].roles == ["system", "user", *["assistant", "tool"] * 2]


def test_two_tools_then_a_report(relay: Relay, world: World) -> None:
    async def main() -> Any:
        return await Runner.run(agent_of(relay, world, output_type=Report), QUESTION, max_turns=3)

    assert isinstance(asyncio.run(main()).final_output, Report)
    assert world.calls == ORDER


def test_streamed_run_tells_calls_results_and_answer_in_order(relay: Relay, world: World) -> None:
    async def main() -> tuple[list[str], Any]:
        result = Runner.run_streamed(agent_of(relay, world), QUESTION, max_turns=3)
        names = [e.name async for e in result.stream_events() if e.type == "run_item_stream_event"]
        return names, result.final_output

    names, answer = asyncio.run(main())

    assert names == [*["tool_called", "tool_output"] * 2, "message_output_created"]
    assert world.calls == ORDER
    assert answer
    assert [exchange.body["stream"] for exchange in relay.exchanges] == [True] * 3
