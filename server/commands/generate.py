"""`penstock generate`: stream one answer to the terminal, on the engine that serves."""

from __future__ import annotations

import asyncio
import sys
import time
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
from ..log import configure_logging
from ..protocol.fields import MethodSpec
from ..settings.serve import ServeSettings
from ..settings.values import as_json
from .command_settings import CommandSettings
from .loading import load_engine

if TYPE_CHECKING:
    from ...engine.async_engine import AsyncEngine


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
    `schema_file`: the answer is JSON that matches the JSON schema in this file.
    `decoding`: a decoding method, such as jacobi, or JSON with methods and their parameters.
    """

    # Flags are text: "5" is a fine integer here, and in JSON it is not.
    model_config = ConfigDict(strict=False, frozen=True, extra="forbid")

    file_neighbours: ClassVar[tuple[type[BaseModel], ...]] = (ServeSettings,)

    prompt: CliPositionalArg[str]
    chat: bool = False
    raw: bool = False
    schema_file: Annotated[Path | None, Field(validation_alias="schema")] = None
    response_format: CliSuppress[ResponseFormat | None] = None
    structured_outputs: CliSuppress[StructuredOutputs | None] = None
    decoding: Annotated[MethodSpec | None, NoDecode, BeforeValidator(_name_or_json)] = None

    @property
    def sampling(self) -> SamplingFields:
        """The sampling part."""
        fields = {name: getattr(self, name) for name in SamplingFields.model_fields}
        if self.schema_file is not None:
            fields["structured_outputs"] = StructuredOutputs(json=_read(self.schema_file))
        return SamplingFields(**fields)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--schema {path}: {error}") from error


def run_generate(settings: GenerateSettings) -> int:
    """Generate; returns the exit status.

    Raises:
        ConfigurationError: settings or model cannot be used.
        RequestError: the prompt or a sampling parameter does not fit the model.
    """
    if settings.chat and settings.raw:
        raise ConfigurationError("--chat and --raw contradict each other; give one of them")
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
    messages = [{"role": "user", "content": prompt}]
    request = engine.input_processor.prepare(
        Input(
            request_id="generate",
            prompt=tokenizer.render_chat(messages) if as_chat else prompt,
            params=settings.sampling,
            decoding=settings.decoding,
            conversation=Conversation(messages=messages) if as_chat else None,
        )
    )
    engine.start()
    reading = asyncio.create_task(_show_reading(engine, len(request.prompt_ids)))
    try:
        async for delta in engine.submit(request):
            reading.cancel()
            sys.stdout.write(delta.text)
            sys.stdout.flush()
        sys.stdout.write("\n")
    finally:
        reading.cancel()
        await engine.stop(0.0)


async def _show_reading(engine: AsyncEngine, prompt_tokens: int) -> None:
    """A progress bar on the terminal while a long prompt is read; ends by being cancelled."""
    if prompt_tokens < _LONG_PROMPT_TOKENS:
        return
    # disable=None: only where standard error is a terminal.
    with tqdm(total=prompt_tokens, unit="token", leave=False, disable=None) as bar:
        while True:
            bar.update(engine.stats().prompt_tokens - bar.n)
            await asyncio.sleep(_REFRESH_S)
