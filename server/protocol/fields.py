"""Field types that the request bodies share. Every one is bounded on both ends."""

from typing import Annotated, Any, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

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
Priority = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]
TruncateTokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
# fail_fast: a list of a million wrong items must make one error, not a million.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]


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
MethodSpec = Name | Annotated[list[Name], Field(max_length=MAX_METHODS)] | FreeObject
"""What the registries take: a name, names, or names with parameters."""


class StreamOptions(BaseModel):
    """`include_usage`: send one more chunk with the token counts before `[DONE]`."""

    model_config = STRICT

    include_usage: bool = False
