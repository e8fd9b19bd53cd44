"""Settings of what requests may name."""

from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode

from penstock.settings import Settings

from ..conventions.choose import AUTO
from ..evaluators import MAX_EVALUATORS, EvaluatorName, ExternalEvaluator
from ..presets import MAX_PRESETS, Preset, PresetName
from .values import Words, as_json

RESERVED_TEMPLATE_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "load_audio_from_video",
        "max_length",
        "messages",
        "padding",
        "processor_kwargs",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Words that change what rendering returns or where its template comes from."""

# Not decoded before validation: mappings of several sources would be merged, key by key.
PresetTable = Annotated[dict[PresetName, Preset], NoDecode, BeforeValidator(as_json)]
EvaluatorTable = Annotated[
    dict[EvaluatorName, ExternalEvaluator], NoDecode, BeforeValidator(as_json)
]


class RequestSettings(Settings):
    """Requests.

    `chat_template_kwarg`: variables of the chat template that requests may set.
    `tool_parser`: how the model writes calls of tools: auto (recognised from its chat template),
    off, deepseek, harmony, hermes, json, llama3, mistral or pythonic, or a plug-in's.
    `reasoning_parser`: how it writes thoughts: auto, off, harmony, mistral or think, or a
    plug-in's.
    `presets`: named combinations of methods, each served as the model MODEL:NAME. In YAML:
    `presets: {fast: {decoding: jacobi}}`; in a flag the same as JSON. A preset may set `decoding`
    and `kv_cache`.
    `evaluators`: HTTP services that searches may name. In YAML:
    `evaluators: {judge: {url: "http://localhost:9000/score", timeout_s: 5, retries: 2,
    on_failure: neutral}}`; in a flag the same as JSON.
    """

    tool_parser: str = AUTO
    reasoning_parser: str = AUTO
    chat_template_kwarg: Words = Field(default=["enable_thinking"])
    presets: PresetTable = Field(default={}, max_length=MAX_PRESETS)
    evaluators: EvaluatorTable = Field(default={}, max_length=MAX_EVALUATORS)

    @field_validator("chat_template_kwarg")
    @classmethod
    def _harmless(cls, names: list[str]) -> list[str]:
        for name in names:
            if name in RESERVED_TEMPLATE_KWARGS:
                raise ValueError(
                    f"names {name!r}, which requests must never set; leave it out of the list"
                )
        return names
