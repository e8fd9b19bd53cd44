"""`%` and `str.format` that keep the marks of the values they insert (`traced.py`)."""

import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from .traced import all_said, as_text, concatenate, holds_said

_PERCENT = re.compile(r"%(?:\((?P<name>[^()]*)\))?s|%%")


def percent(form: str, values: Any) -> str:
    """`form % values`, with marks."""
    result = str.__mod__(form, values)
    if not holds_said((form, values)):
        return result
    given = iter(values if isinstance(values, tuple) else (values,))
    pieces: list[str] = []
    at = 0
    for found in _PERCENT.finditer(form):
        pieces.append(form[at : found.start()])
        at = found.end()
        if found[0] == "%%":
            pieces.append("%")
        else:
            name = found["name"]
            named: Any = values
            pieces.append(as_text(next(given, "") if name is None else named[name]))
    pieces.append(form[at:])
    return _agreed(pieces, result)


def fill(form: str, result: str, values: Sequence[Any], named: Mapping[str, Any]) -> str:
    """`result`, which is `form.format(*values, **named)`, with marks."""
    if not holds_said((form, list(values), named)):
        return result
    pieces: list[str] = []
    unnumbered = iter(values)
    for literal, field, form_spec, conversion in Formatter().parse(form):
        pieces.append(literal)
        if field is None:
            continue
        if form_spec or conversion:
            return all_said(result)
        if not field:
            value = next(unnumbered, "")
        elif field.isdecimal() and int(field) < len(values):
            value = values[int(field)]
        else:
            value = named.get(field, "")
        pieces.append(as_text(value))
    return _agreed(pieces, result)


def _agreed(pieces: list[str], result: str) -> str:
    precise = concatenate(pieces)
    return precise if precise == result else all_said(result)
