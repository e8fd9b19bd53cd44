"""What completions and chats have in common."""

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from penstock.errors import RequestError

from ...decoding.sampling_params import MAX_LOGPROBS, SamplingFields
from ...engine.requests.truncation import Side, Truncation
from .field_table import FIELDS
from .fields import (
    STRICT,
    MethodSpec,
    ModelName,
    Name,
    Priority,
    StreamOptions,
    TruncateTokens,
    User,
)

Alternatives = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]


def _other_names(schema: dict[str, Any]) -> None:
    """Describe the fields' other names, too."""
    properties = schema["properties"]
    for name, field in FIELDS.items():
        if field.same_as in properties:
            same = f"Another name of {field.same_as}."
            properties[name] = {**properties[field.same_as], "title": name, "description": same}


class GenerationBody(SamplingFields):
    """Fields of every request that generates; the sampling fields and their bounds are inherited.

    `user` is accepted for OpenAI's clients and has no effect.
    """

    model_config: ClassVar[ConfigDict] = {**STRICT, "json_schema_extra": _other_names}
    endpoint: ClassVar[str]

    model: ModelName | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: User | None = None
    prompt_logprobs: Alternatives | None = None
    truncate_prompt_tokens: TruncateTokens | None = None
    truncation_side: Side = "left"
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    priority: Priority = 0
    cache_salt: Name | None = None
    decoding: MethodSpec | None = None
    kv_cache: MethodSpec | None = None

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk has the counts so far."""
        return (
            self.include_usage
            and self.stream_options is not None
            and self.stream_options.continuous_usage_stats
        )

    @property
    def truncation(self) -> Truncation | None:
        """How the prompt is cut; None: it is not."""
        if self.truncate_prompt_tokens is None:
            return None
        return Truncation(tokens=self.truncate_prompt_tokens, side=self.truncation_side)

    def check_together(self) -> None:
        """Raise RequestError where fields that are right alone contradict each other."""
        options = self.stream_options
        if options is not None and options.asks_for_something and not self.stream:
            raise RequestError(
                "stream_options is only for streams; set stream to true or leave it out",
                param="stream_options",
                code="invalid_parameter",
            )
        if self.stream and self.prompt_logprobs is not None:
            raise RequestError(
                "prompt_logprobs is not sent in streams; set stream to false or leave it out",
                param="prompt_logprobs",
                code="invalid_parameter",
            )
