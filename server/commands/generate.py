"""`penstock generate`: stream one answer to the terminal, on the engine that serves."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from prometheus_client import CollectorRegistry
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import CliPositionalArg, CliSuppress, NoDecode
from tqdm import tqdm

from penstock.errors import ConfigurationError

from ...decoding.constraint.fields import ResponseFormat, StructuredOutputs
from ...decoding.sampling_params import SamplingFields
from ...engine.config import EngineConfig
from ...engine.requests.input import Input
from ...engine.state.request import Conversation
from ..conventions.chat import ChatConventions, ThoughtUse
from ..conventions.choose import AUTO, conventions_of
from ..log import configure_logging
from ..protocol.chat_body import ConversationFields
from ..protocol.fields import MethodSpec
from ..protocol.parse import validated
from ..settings.serve import ServeSettings
from ..settings.values import as_json
from .command_settings import CommandSettings
from .loading import load_engine

if TYPE_CHECKING:
    from ...engine.async_engine import AsyncEngine
    from ..conventions.reading import Reading


_LONG_PROMPT_TOKENS = 512
_REFRESH_S = 0.1


def _name_or_json(value: Any) -> Any:
    """A method's name stays as it is; what begins as JSON is read as JSON."""
    return as_json(value) if isinstance(value, str) and value[:1] in "{[" else value


class GenerateSettings(SamplingFields, EngineConfig, CommandSettings):
    """Continue a prompt, or answer it as a chat, and stream the text to standard output.

    `prompt`: the text; - reads it from standard input.
    `chat`: the prompt is a user's message; the default where the model has a chat template.
    `raw`: the prompt is continued as it is.
    `max_tokens`: the default is all that the model's context leaves.
    `temperature`: 0 always takes the most probable token.
    `seed`: same seed, same text.
    `stop`: end before this text.
    `adapter`: one of those that --adapters names; default: the model as it is.
    `schema_file`: the answer is JSON that matches the JSON schema in this file.
    `tools_file`: a JSON list of tools, as OpenAI has them, that the model may call; calls are shown
    as lines of JSON.
    `tool_choice`: auto, required, none, or the name of the function to call.
    `decoding`: a decoding method, such as jacobi, or JSON with methods and their parameters.
    """

    # Flags are text: "5" is a fine integer here, and in JSON it is not.
    model_config = ConfigDict(strict=False, frozen=True, extra="forbid")

    file_neighbours: ClassVar[tuple[type[BaseModel], ...]] = (ServeSettings,)

    prompt: CliPositionalArg[str]
    chat: bool = False
    raw: bool = False
    schema_file: Annotated[Path | None, Field(validation_alias="schema")] = None
    tools_file: Annotated[Path | None, Field(validation_alias="tools")] = None
    tool_choice: str = "auto"
    adapter: str | None = None
    response_format: CliSuppress[ResponseFormat | None] = None
    structured_outputs: CliSuppress[StructuredOutputs | None] = None
    decoding: Annotated[MethodSpec | None, NoDecode, BeforeValidator(_name_or_json)] = None

    @property
    def sampling(self) -> SamplingFields:
        """The sampling part."""
        fields = {name: getattr(self, name) for name in SamplingFields.model_fields}
        if self.schema_file is not None:
            schema = _read("--schema", self.schema_file)
            fields["structured_outputs"] = StructuredOutputs(json=schema)
        return SamplingFields(**fields)

    def conversation(self, prompt: str) -> ConversationFields:
        """The prompt as a chat, with the tools.

        Raises:
            ConfigurationError: the file of tools cannot be used.
        """
        fields: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        if self.tools_file is not None:
            text = _read("--tools", self.tools_file)
            try:
                fields["tools"] = json.loads(text)
            except ValueError as error:
                raise ConfigurationError(f"--tools {self.tools_file}: not JSON: {error}") from error
            named = {"type": "function", "function": {"name": self.tool_choice}}
            is_word = self.tool_choice in ("auto", "none", "required")
            fields["tool_choice"] = self.tool_choice if is_word else named
        chat, _ = validated(ConversationFields, fields)
        chat.check_tools()
        return chat


def _read(flag: str, path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{flag} {path}: {error}") from error


def run_generate(settings: GenerateSettings) -> int:
    """Generate; returns the exit status.

    Raises:
        ConfigurationError: settings or model cannot be used.
        RequestError: the prompt or a sampling parameter does not fit the model.
    """
    if settings.chat and settings.raw:
        raise ConfigurationError("--chat and --raw contradict each other; give one of them")
    if settings.raw and settings.tools_file is not None:
        raise ConfigurationError("--tools are for chats, and --raw asks for none; leave one out")
    if settings.n != 1:
        raise ConfigurationError(f"-n is {settings.n}, but a terminal shows one answer")
    configure_logging("warning")
    prompt = sys.stdin.read() if settings.prompt == "-" else settings.prompt
    engine = load_engine(settings.engine_config, registry=CollectorRegistry(), clock=time.monotonic)
    asyncio.run(_stream(engine, settings, prompt))
    return 0


async def _stream(engine: AsyncEngine, settings: GenerateSettings, prompt: str) -> None:
    tokenizer = engine.tokenizer
    as_chat = settings.chat or (not settings.raw and tokenizer.chat_template is not None)
    given = Input(
        request_id="generate",
        prompt=prompt,
        params=settings.sampling,
        decoding=settings.decoding,
        adapter=_adapter_key(engine, settings.adapter),
    )
    reading: Reading | None = None
    if as_chat:
        body = settings.conversation(prompt)
        known = conventions_of(tokenizer, AUTO, AUTO)
        chat = ChatConventions(known, tokenizer, body.tool_use, ThoughtUse(apart=False))
        messages = chat.messages(body.template_messages())
        rendered = tokenizer.render_chat(messages, tools=chat.template_tools)
        given = replace(
            given,
            prompt=rendered,
            conversation=Conversation(messages=messages),
            frame=chat.frame(rendered),
            thinking=chat.thinking(rendered),
            shown_tokens=chat.shown_tokens,
        )
        reading = chat.reading(rendered)
    request = engine.input_processor.prepare(given)
    writer = _Writer(reading)
    engine.start()
    bar = asyncio.create_task(_show_reading(engine, len(request.prompt_ids)))
    try:
        async for delta in engine.submit(request):
            bar.cancel()
            writer.write(delta.text, last=delta.finish_reason is not None)
        sys.stdout.write("\n")
    finally:
        bar.cancel()
        await engine.stop(0.0)


def _adapter_key(engine: AsyncEngine, name: str | None) -> str:
    if name is None:
        return ""
    if name not in engine.adapters:
        known = ", ".join(engine.adapters) or "none"
        raise ConfigurationError(f"--adapter {name}: no such adapter; --adapters names {known}")
    return engine.adapters[name].key


class _Writer:
    """Writes an answer to standard output: text as it comes, calls as lines of JSON at the end."""

    def __init__(self, reading: Reading | None) -> None:
        self._choice = None if reading is None else reading.choice()
        self._calls: list[dict[str, str]] = []

    def write(self, text: str, *, last: bool) -> None:
        """Write what has come; `last`: the answer has ended."""
        if self._choice is not None:
            fields = self._choice.push(text, (), last=last)
            text = fields.get("content", "")
            for call in fields.get("tool_calls", ()):
                function: dict[str, str] = call["function"]
                if "name" in function:
                    self._calls.append({"name": function["name"], "arguments": ""})
                self._calls[-1]["arguments"] += function["arguments"]
        sys.stdout.write(text)
        if last:
            sys.stdout.write("\n".join(_line(call) for call in self._calls))
        sys.stdout.flush()


def _line(call: dict[str, str]) -> str:
    return f'{{"name": {json.dumps(call["name"])}, "arguments": {call["arguments"]}}}'


async def _show_reading(engine: AsyncEngine, prompt_tokens: int) -> None:
    """A progress bar on the terminal while a long prompt is read; ends by being cancelled."""
    if prompt_tokens < _LONG_PROMPT_TOKENS:
        return
    # disable=None: only where standard error is a terminal.
    with tqdm(total=prompt_tokens, unit="token", leave=False, disable=None) as bar:
        while True:
            bar.update(engine.stats().prompt_tokens - bar.n)
            await asyncio.sleep(_REFRESH_S)
