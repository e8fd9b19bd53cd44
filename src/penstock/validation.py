"""Error messages for wrong values, in this server's words.

pydantic validates, but its messages name its own types ("Input should be a valid dictionary",
"constrained-str"), which mean nothing to a caller who sent JSON. Only the kind of a mistake and its
limits come from pydantic; the words are here, for bodies, method parameters and settings alike.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

SHOWN_CHARS = 64
OWN_KIND = "_kind"
"""Error types with this ending are this server's own: their message says what a value must be."""


M = TypeVar("M", bound=BaseModel)


def from_json(model: type[M], value: Any) -> M:
    """Validate `value` from JSON as a strict `model`; for integer fields 100.0 counts as 100.

    JSON has one kind of number, and clients write whole numbers either way.

    Raises:
        ValidationError: see `deepest`, `path_of` and `sentence`.
    """
    try:
        return model.model_validate(value, strict=True)
    except ValidationError as error:
        places = {
            _list_or_value(details["loc"])
            for details in error.errors(include_url=False, include_context=False)
            if details["type"] in _WANTS_INTEGER and whole(details["input"]) is not details["input"]
        }
        if not places:
            raise
        for place in places:
            value = _with_integers(value, place)
    return model.model_validate(value, strict=True)


_WANTS_INTEGER = ("int_type", "int_from_float")


def whole(value: Any) -> Any:
    """100.0 as 100; other values unchanged. Above 2**53 a float does not identify an integer."""
    if type(value) is float and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    return value


def _list_or_value(place: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The location of a wrong value, or of the outermost list that holds it."""
    return next((place[:i] for i, part in enumerate(place) if isinstance(part, int)), place)


def _with_integers(value: Any, place: Sequence[int | str]) -> Any:
    """A copy with integers at `place`, parts of which may be pydantic's names of union branches.

    In a list all whole numbers become integers, because often only its first mistake is reported.
    """
    if isinstance(value, list):
        return [_with_integers(item, ()) for item in cast("list[Any]", value)]
    if not place:
        return whole(value)
    if isinstance(value, Mapping) and place[0] in value:
        fields = cast("Mapping[Any, Any]", value)
        return {**fields, place[0]: _with_integers(fields[place[0]], place[1:])}
    return _with_integers(value, place[1:])


def show(value: object) -> str:
    """A value as a message shows it: shortened, and containers only by their kind."""
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


def deepest(error: ValidationError) -> ErrorDetails:
    """The most deeply nested mistake: it is in the union branch that the caller meant."""
    return max(
        error.errors(include_url=False, include_context=True), key=lambda item: len(item["loc"])
    )


def path_of(details: ErrorDetails, value: object) -> str:
    """The dotted path into the caller's `value`; pydantic's names of branches are left out."""
    loc: Sequence[int | str] = details["loc"]
    absent = details["type"] == "missing"
    parts: list[str] = []
    here: Any = value
    for position, part in enumerate(loc):
        if isinstance(here, list) and isinstance(part, int):
            items = cast("list[Any]", here)
            here = items[part] if part < len(items) else None
        elif isinstance(here, Mapping) and part in here:
            here = cast("Mapping[Any, Any]", here)[part]
        elif absent and position == len(loc) - 1:
            here = None  # a missing field is no key of its object
        else:
            continue
        parts.append(str(part)[:SHOWN_CHARS])
    return ".".join(parts)


_TYPES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a string",
    "string_sub_type": "a string",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "an object",
    "mapping_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "path_type": "a path",
    "url_type": "a URL",
    "url_parsing": "a URL",
    "none_required": "null",
}

_LIMITS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}

_WORDS = {
    "missing": "is missing; the request needs it",
    "extra_forbidden": "is not known here; leave it out",
    "string_unicode": "is no valid Unicode; send UTF-8 without lone surrogates",
    "recursion_loop": "is nested too deeply; flatten it",
}


def _limit(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def reason(details: ErrorDetails, shown: Callable[[object], str] = show) -> str:
    """What is wrong with a value, to follow its name in a message. `shown`: formats the value."""
    kind, value = details["type"], details["input"]
    context = details.get("ctx", {})
    if kind in _WORDS:
        return _WORDS[kind]
    if kind == "value_error":
        return str(context["error"])
    if kind in {"too_long", "string_too_long", "too_short", "string_too_short"}:
        unit = "characters" if kind.startswith("string") else "items"
        most = kind.endswith("long")
        words = "it may have at most" if most else "it must have at least"
        limit = context["max_length" if most else "min_length"]
        return f"has {len(value)} {unit}; {words} {limit}"
    return f"is {shown(value)}; it must be {_expected(kind, context, details['msg'])}"


def sentence(name: str, details: ErrorDetails, shown: Callable[[object], str] = show) -> str:
    """The whole message: `name` and the reason. A reason that is a sentence follows a colon."""
    words = reason(details, shown)
    return f"{name} {words}" if words.startswith(("is ", "has ")) else f"{name}: {words}"


def _expected(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind in _TYPES:
        return _TYPES[kind]
    if kind in _LIMITS:
        words, key = _LIMITS[kind]
        return f"{words} {_limit(context[key])}"
    if kind in {"literal_error", "enum"}:
        return str(context["expected"])
    if kind == "string_pattern_mismatch":
        return f"text of the form {context['pattern']}"
    if kind == "url_scheme":
        return f"a URL that begins with {context['expected_schemes']}"
    if kind.endswith(OWN_KIND):
        return message
    return "another value"
