"""Field types that the request bodies share. Every one is bounded on both ends."""

from typing import Annotated, Any, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
)

from penstock.validation import show

from ...decoding.sampling_params import MAX_TOKENS, TokenId

MAX_PROMPTS = 256
MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_NAME_CHARS = 256
MAX_USER_CHARS = 512
MAX_PRIORITY = 2**31 - 1
MAX_METHODS = 16
MAX_JSON_DEPTH = 16
MAX_JSON_VALUES = 4096
MAX_TEMPLATE_KWARGS = 16

STRICT = ConfigDict(strict=True, frozen=True, extra="ignore")

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARS)]
User = Annotated[str, StringConstraints(max_length=MAX_USER_CHARS)]
ModelName = Annotated[str, StringConstraints(max_length=MAX_NAME_CHARS)]
"""Clients of servers with one model send an empty name for it."""
Priority = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]
# fail_fast: a list of a million wrong items must make one error, not a million.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]


def _some_tokens(count: int) -> int:
    if count == 0:
        raise ValueError("is 0; it must be at least 1, or -1 for what the model's context holds")
    return count


TruncateTokens = Annotated[int, Field(ge=-1, le=MAX_TOKENS), AfterValidator(_some_tokens)]


def _bounded(value: Any) -> Any:
    """Refuse free JSON that is deep or long, before anything walks it by recursion."""
    level = [value]
    values = 1
    for _ in range(MAX_JSON_DEPTH):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper.extend(cast("dict[str, Any]", item).values())
            elif isinstance(item, list):
                deeper.extend(cast("list[Any]", item))
        values += len(deeper)
        if not deeper:
            return value
        if values > MAX_JSON_VALUES:
            raise ValueError(f"has more than {MAX_JSON_VALUES} values; send fewer")
        level = deeper
    raise ValueError(f"is nested deeper than {MAX_JSON_DEPTH} levels; flatten it")


FreeJson = Annotated[Any, AfterValidator(_bounded)]
FreeObject = Annotated[dict[str, FreeJson], Field(max_length=MAX_METHODS)]


def _method_kind(value: Any) -> str | None:
    return {str: "name", list: "names", dict: "methods"}.get(type(value))


MethodSpec = Annotated[
    Annotated[Name, Tag("name")]
    | Annotated[list[Name], Field(max_length=MAX_METHODS), Tag("names")]
    | Annotated[FreeObject, Tag("methods")],
    Discriminator(
        _method_kind,
        custom_error_type="method_kind",
        custom_error_message="the name of a method, a list of names, or an object",
    ),
]
"""What the registries take: a name, names, or names with parameters."""

MAX_HINT_CHARS = 64


def _hint(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, str) and len(value) <= MAX_HINT_CHARS:
        return value
    raise ValueError(
        f"is {show(value)}; it must be a word of at most {MAX_HINT_CHARS} characters, a number, or "
        "true or false"
    )


Hint = Annotated[Any, AfterValidator(_hint)]
"""A word for the model rather than for the server."""


class StreamOptions(BaseModel):
    """`include_usage`: send one more chunk with the token counts before `[DONE]`.

    `continuous_usage_stats`: with it, every chunk has the counts so far.
    `include_obfuscation`: padding against observers of encrypted traffic; none is ever sent.
    """

    model_config = STRICT

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False

    @property
    def asks_for_something(self) -> bool:
        """Whether any of them is on."""
        return self.include_usage or self.continuous_usage_stats
