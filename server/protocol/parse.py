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
    path = _sent_path(path_of(details, values), sent_as)
    return RequestError(
        sentence(path or "the body", details),
        param=path or None,
        code=(
            "missing_required_parameter" if details["type"] == "missing" else "invalid_parameter"
        ),
    )


def named_as_sent(error: RequestError, raw: bytes) -> RequestError:
    """The same refusal of the body `raw`, under the name that the caller used for the field."""
    if error.param is None:
        return error
    fields = parse_object(raw)
    sent_as: dict[str, str] = {}
    for name in fields:
        whole = (FIELDS[name].same_as or "").partition(".")[0] if name in FIELDS else ""
        if whole and whole not in fields:
            sent_as[whole] = name
    path = _sent_path(error.param, sent_as)
    if path != error.param:
        error.message = error.message.replace(error.param, path)
        error.param, error.args = path, (error.message,)
    return error


def _sent_path(path: str, sent_as: Mapping[str, str]) -> str:
    """A dotted path under the name that its first field was sent as."""
    first, dot, rest = path.partition(".")
    name = sent_as.get(first, first)
    field = FIELDS.get(name)
    if field is None or field.kind != "part":
        return name + dot + rest
    # A part of the object that it was put into.
    return name + rest.removeprefix((field.same_as or "").partition(".")[2])
