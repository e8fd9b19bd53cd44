"""Types of settings: what flags, environment and YAML give, as lists, numbers and JSON."""

import json
from typing import Annotated, Any, cast

from pydantic import BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode


def split_commas(value: Any) -> Any:
    """A list from what flags, environment and YAML give: strings may hold several, by commas."""
    if not isinstance(value, str | list):
        return value
    items = [value] if isinstance(value, str) else cast("list[Any]", value)
    parts: list[Any] = []
    for item in items:
        if isinstance(item, str):
            parts += [part.strip() for part in item.split(",") if part.strip()]
        else:
            parts.append(item)
    return parts


def as_json(value: Any) -> Any:
    """What a flag or the environment says in JSON; what YAML says is there already."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"is not valid JSON at {where}") from None


Words = Annotated[list[str], NoDecode, BeforeValidator(split_commas)]
Secrets = Annotated[list[SecretStr], NoDecode, BeforeValidator(split_commas)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
