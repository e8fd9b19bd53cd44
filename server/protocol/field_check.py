"""The fields of a request, held against the table of what they mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson
from pydantic import BaseModel

from penstock.errors import RequestError
from penstock.validation import show

from .field_table import ANYTHING, FIELDS, FieldMeaning
from .generation import GenerationBody


@dataclass(frozen=True, slots=True)
class CheckedFields:
    """What a caller sent, under this server's names.

    `sent_as`: of fields that came under another name, that one. `ignored`: without any effect.
    """

    values: dict[str, Any]
    sent_as: dict[str, str]
    ignored: tuple[str, ...]


def check_fields(model: type[BaseModel], fields: Mapping[str, Any]) -> CheckedFields:
    """Rename what has another name here, and refuse what asks for something that is not done.

    Raises:
        RequestError: names the field.
    """
    own = model.model_fields
    values = {name: value for name, value in fields.items() if name in own}
    sent_as: dict[str, str] = {}
    ignored: set[str] = set()
    for name in fields:  # in the order sent, so that the same body gets the same refusal
        if name in own:
            continue
        field = FIELDS.get(name)
        if field is None or field.kind == "hint":
            ignored.add(name)
        elif field.same_as in own:
            _rename(fields, field, values, sent_as)
        elif field.kind == "part" and (field.same_as or "").partition(".")[0] in own:
            _put(fields, field, values, sent_as)
        elif field.kind in ("refused", "part") or issubclass(model, GenerationBody):
            _check_neutral(model, field, fields[name])
    return CheckedFields(values, sent_as, tuple(name for name in fields if name in ignored))


def _rename(
    fields: Mapping[str, Any], field: FieldMeaning, values: dict[str, Any], sent_as: dict[str, str]
) -> None:
    name, target = field.name, field.same_as
    assert target is not None
    if target in values and not _same(values[target], fields[name]):
        other = sent_as.get(target, target)
        raise RequestError(
            f"{name} is {show(fields[name])} and {other} is {show(values[target])}, which mean the "
            "same; send one of them",
            param=name,
            code="invalid_parameter",
        )
    values[target] = fields[name]
    sent_as[target] = name


def _put(
    fields: Mapping[str, Any], field: FieldMeaning, values: dict[str, Any], sent_as: dict[str, str]
) -> None:
    """Put a field that came alone where it belongs: into another field that is an object."""
    name, value = field.name, fields[field.name]
    if value in field.neutral:
        return
    assert field.same_as is not None
    whole, _, part = field.same_as.partition(".")
    if whole in values:
        other = sent_as.get(whole, whole)
        raise RequestError(
            f"{name} and {other} both say the same; send one of them",
            param=name,
            code="invalid_parameter",
        )
    if name == "format" and value == "json":
        value = {"type": "object"}  # Ollama's word for any object
    values[whole] = {part: value}
    sent_as[whole] = name


def _check_neutral(model: type[BaseModel], field: FieldMeaning, value: Any) -> None:
    if field.kind == "no effect" or field.neutral == ANYTHING:
        return
    if any(_same(value, neutral) for neutral in field.neutral):
        return
    name = field.name
    if field.kind != "refused":
        raise RequestError(
            f"{name} is no field of {getattr(model, 'endpoint', 'this endpoint')}; leave it out",
            param=name,
            code="unsupported_parameter",
        )
    simple = next((n for n in field.neutral if not isinstance(n, list) and n != ""), None)
    remedy = "leave it out"
    if simple is not None:
        remedy += f" or send {orjson.dumps(simple).decode()}"
    if field.meaning:
        remedy += f": {field.meaning}"
    raise RequestError(
        f"{name} ({show(value)}) is not supported yet by this server; {remedy}",
        param=name,
        code="unsupported_parameter",
    )


def _same(value: object, neutral: object) -> bool:
    """Equal as JSON: 1 is 1.0, but 1 is not true; of an object what `neutral` names counts."""
    if isinstance(value, bool) or isinstance(neutral, bool):
        return value is neutral
    if isinstance(value, dict) and isinstance(neutral, dict) and neutral:
        given = cast("dict[str, Any]", value)
        wanted = cast("dict[str, Any]", neutral)
        return all(given.get(key) == item for key, item in wanted.items())
    return value == neutral
