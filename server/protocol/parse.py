"""From the bytes of a body to a validated model, or a refusal that names the field."""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import orjson
from pydantic import BaseModel, ValidationError

from penstock.errors import RequestError
from penstock.validation import deepest, from_json, path_of, sentence, show

from .field_check import check_fields
from .field_table import FIELDS
from .structure import check_structure

B = TypeVar("B", bound=BaseModel)


def parse_body(model: type[B], raw: bytes) -> tuple[B, tuple[str, ...]]:
    """Validate a JSON object; also return the names of the fields without any effect.

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
            f"the body is not valid JSON at line {error.lineno}, column {error.colno}; send one "
            "JSON object in UTF-8",
            code="invalid_json",
        ) from None
    if not isinstance(parsed, dict):
        raise RequestError(f"the body is {show(parsed)}; send one JSON object", code="invalid_json")
    return {
        name: value for name, value in cast("dict[str, Any]", parsed).items() if value is not None
    }


def validated(model: type[B], fields: dict[str, Any]) -> tuple[B, tuple[str, ...]]:
    """The body that the fields make, and the names of those without any effect.

    Raises:
        RequestError: a field has a wrong type or is out of its bounds.
    """
    checked = check_fields(model, fields)
    try:
        body = from_json(model, checked.values)
    except ValidationError as error:
        raise explain(error, checked.values, checked.sent_as) from None
    return body, checked.ignored


def explain(
    error: ValidationError, values: Mapping[str, Any], sent_as: Mapping[str, str]
) -> RequestError:
    """The refusal of the mistake that the caller meant, under the name that the caller used."""
    details = deepest(error)
    first, dot, rest = path_of(details, values).partition(".")
    path = sent_as.get(first, first) + dot + rest
    part = FIELDS.get(sent_as.get(first, first))
    if part is not None and part.kind == "part":  # of the object it was put into
        path = part.name + rest.removeprefix((part.same_as or "").partition(".")[2])
    return RequestError(
        sentence(path or "the body", details),
        param=path or None,
        code=(
            "missing_required_parameter" if details["type"] == "missing" else "invalid_parameter"
        ),
    )
