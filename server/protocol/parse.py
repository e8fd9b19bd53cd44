"""From the bytes of a body to a validated model, or a refusal that names the field."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from penstock.errors import RequestError

from .structure import check_structure
from .unsupported import refuse_unsupported

B = TypeVar("B", bound=BaseModel)

SHOWN_CHARS = 64


def parse_body(model: type[B], raw: bytes) -> tuple[B, tuple[str, ...]]:
    """Validate a JSON object; also return the names of the fields that nothing here knows.

    Raises:
        RequestError: broken JSON, or a field with a wrong type or out of its bounds.
    """
    return validated(model, parse_object(raw))


def parse_object(raw: bytes) -> dict[str, Any]:
    """The fields of a JSON object: the one place where a body is parsed.

    A field that is null counts as absent, because client libraries send null for "not set".

    Raises:
        RequestError: no JSON object, or one of too many parts.
    """
    check_structure(raw)
    try:
        parsed: Any = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RequestError(
            f"the body is not valid JSON: {error}; send one JSON object in UTF-8",
            code="invalid_json",
        ) from None
    if not isinstance(parsed, dict):
        raise RequestError(f"the body is {show(parsed)}; send one JSON object", code="invalid_json")
    return {
        name: value for name, value in cast("dict[str, Any]", parsed).items() if value is not None
    }


def validated(model: type[B], fields: dict[str, Any]) -> tuple[B, tuple[str, ...]]:
    """The body that the fields make, and the names of those that nothing here knows.

    Raises:
        RequestError: a field has a wrong type or is out of its bounds.
    """
    refuse_unsupported(fields)
    try:
        body = model.model_validate(fields)
    except ValidationError as error:
        raise explain(error, fields) from None
    return body, tuple(name for name in fields if name not in model.model_fields)


def explain(error: ValidationError, fields: Mapping[str, Any]) -> RequestError:
    """The refusal of the mistake that lies deepest: the branch that the caller meant."""
    details = max(
        error.errors(include_url=False, include_context=True),
        key=lambda item: len(item["loc"]),
    )
    path = _path(details["loc"], fields)
    return RequestError(
        f"{path or 'the body'} {_reason(details)}",
        param=path or None,
        code=(
            "missing_required_parameter" if details["type"] == "missing" else "invalid_parameter"
        ),
    )


def show(value: object) -> str:
    """A value for a message: short, and containers only by their kind."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return repr(value) if len(value) <= SHOWN_CHARS else f"{value[:SHOWN_CHARS]!r}..."
        case int() | float():
            text = str(value)
            return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
        case list():
            return f"a list of {len(cast('list[Any]', value))}"
        case dict():
            return "an object"
        case _:
            return "something else"


def _path(loc: Sequence[int | str], fields: Mapping[str, Any]) -> str:
    """The dotted path into the caller's own JSON; pydantic's branch names are left out."""
    parts: list[str] = []
    here: Any = fields
    for position, part in enumerate(loc):
        if isinstance(here, list) and isinstance(part, int):
            here = cast("list[Any]", here)[part]
        elif isinstance(here, Mapping) and part in here:
            here = cast("Mapping[Any, Any]", here)[part]
        elif isinstance(here, Mapping) and position == len(loc) - 1:
            here = None  # a missing field is no key of its object
        else:
            continue
        parts.append(str(part)[:SHOWN_CHARS])
    return ".".join(parts)


_TYPES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}

_LIMITS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def _limit(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _reason(details: ErrorDetails) -> str:
    kind, value = details["type"], details["input"]
    context = details.get("ctx", {})
    if kind == "missing":
        return "is missing; the request needs it"
    if kind in _TYPES:
        return f"is {show(value)}; it must be {_TYPES[kind]}"
    if kind in _LIMITS:
        words, key = _LIMITS[kind]
        return f"is {show(value)}; it must be {words} {_limit(context[key])}"
    if kind in {"too_long", "string_too_long"}:
        unit = "characters" if kind == "string_too_long" else "items"
        size = len(value)
        return f"has {size} {unit}; it may have at most {context['max_length']}"
    if kind in {"too_short", "string_too_short"}:
        unit = "characters" if kind == "string_too_short" else "items"
        return f"has {len(value)} {unit}; it must have at least {context['min_length']}"
    if kind == "literal_error":
        return f"is {show(value)}; it must be {context['expected']}"
    if kind == "value_error":
        return str(context["error"])
    return f"is {show(value)}: {details['msg']}"
