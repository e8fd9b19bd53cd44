"""The grammar that a request asks for, checked: schemas, regular expressions, choices, tags."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol, cast

import orjson
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark
from pydantic import ValidationError

from ...decoding.constraint.fields import (
    MAX_REGEX_LENGTH,
    JsonSchema,
    StructuralTag,
    StructuredOutputs,
)
from ...decoding.constraint.grammar import Grammar, GrammarError, Grammars
from ...decoding.sampling_params import SamplingFields
from ...errors import RequestError
from .lark import TEXT, Lark

MAX_SCHEMA_CHARS: Final = 262_144
MAX_SCHEMA_DEPTH: Final = 64
MAX_SCHEMA_PARTS: Final = 5_000
_NO_SWITCHES: Final = "x-guidance, which switches checks off, is not for callers; leave it out"
_MAX_REASON_CHARS: Final = 300
_NAMED: Final = ("properties", "$defs", "definitions", "patternProperties")
_VALUES: Final = ("const", "enum", "default", "examples")
_FORMATS: Final = {
    "date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname",
    "ipv4", "ipv6", "uuid", "uri", "uri-reference", "iri", "iri-reference", "uri-template",
    "json-pointer", "relative-json-pointer", "regex",
}  # fmt: skip
"""Those of JSON Schema, draft 2020-12."""
_ANY_WHITESPACE: Final = r"[\x20\x0A\x0D\x09]+"


class Frame(Protocol):
    """What may stand around and in place of the text that a request asks for: calls of tools."""

    @property
    def field(self) -> str | None:
        """The field because of which the answer cannot be any text; None: it can."""
        ...

    def grammar(self, answer: str | None, grammars: Grammars) -> str | None:
        """The grammar of the whole answer, whose text has the grammar `answer` (None: any); None:
        any answer will do. Raises RequestError where it is wrong."""
        ...

    def refusal(self, grammars: Grammars, reason: str) -> RequestError:
        """Why it could not be compiled."""
        ...


def grammar_of(
    params: SamplingFields, grammars: Grammars, frame: Frame | None = None
) -> Grammar | None:
    """The grammar, compiled; None: any answer will do.

    Raises:
        RequestError: it is wrong or too large, or two of them contradict each other.
    """
    structure, form = params.structured_outputs, params.response_format
    structure = None if structure is None or not structure.kinds else structure
    wanted = None if form is None else form.wanted
    if structure is not None and wanted is not None:
        raise RequestError(
            "response_format and structured_outputs both say what the answer has to be; send one "
            "of them",
            param="structured_outputs",
            code="invalid_parameter",
        )
    if structure is not None:
        param = f"structured_outputs.{structure.kinds[0]}"
    elif form is not None and wanted is not None:
        structure, param = wanted, f"response_format.{form.place}"
    else:
        return None if frame is None else _framed(frame, None, grammars)
    try:
        text = _text(structure, param, grammars.controls)
        if frame is None:
            return grammars.compile(text)
        if structure.kinds[0] in ("grammar", "structural_tag"):
            raise ValueError("it cannot stand beside tools, only a schema, a regex or choices can")
        grammars.compile(text)  # alone first, so that an error names it
    except ValueError as error:  # GrammarError is one
        raise refused(param, str(error)) from None
    return _framed(frame, text, grammars)


def compiled(structure: StructuredOutputs, param: str, grammars: Grammars) -> Grammar:
    """The grammar of one form. `param`: the field that it came in.

    Raises:
        RequestError: it is wrong or too large.
    """
    param = f"{param}.{structure.kinds[0]}"
    try:
        return grammars.compile(_text(structure, param, grammars.controls))
    except ValueError as error:
        raise refused(param, str(error)) from None


def _framed(frame: Frame, answer: str | None, grammars: Grammars) -> Grammar | None:
    text = frame.grammar(answer, grammars)
    if text is None:
        return None
    try:
        return grammars.compile(text)
    except GrammarError as error:
        raise frame.refusal(grammars, str(error)) from None


def refused(param: str, reason: str) -> RequestError:
    """The refusal of a grammar. `param`: the field that it came in."""
    reason = reason.strip().removeprefix("Value error, ").partition("\n")[0]
    return RequestError(
        f"{param} cannot be used: {reason[:_MAX_REASON_CHARS]}",
        param=param,
        code="invalid_grammar",
    )


def _text(structure: StructuredOutputs, param: str, controls: Mapping[str, int]) -> str:
    """The grammar in llguidance's notation."""
    if structure.json_object:
        return _of_schema({"type": "object"}, structure)
    if structure.json_ is not None:
        return _of_schema(checked_schema(structure.json_, param), structure)
    if structure.regex is not None:
        return LLMatcher.grammar_from_regex(structure.regex)
    if structure.choice is not None:
        return LLMatcher.grammar_from_lark(
            "start: " + " | ".join(json.dumps(text) for text in structure.choice)
        )
    if structure.grammar is not None:
        if "x-guidance" in structure.grammar:
            raise ValueError(_NO_SWITCHES)
        return LLMatcher.grammar_from_lark(_lark(structure.grammar))
    tag = structure.structural_tag
    assert tag is not None
    return _of_tag(tag if isinstance(tag, StructuralTag) else _parsed_tag(tag), param, controls)


def _lark(grammar: str) -> str:
    try:
        return any_to_lark(grammar)
    except Exception as error:  # it raises these themselves, and RecursionError
        raise ValueError(f"it is no GBNF: {error}") from None


def _parsed_tag(text: str) -> StructuralTag:
    try:
        return StructuralTag.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(error.errors()[0]["msg"]) from None


def _of_tag(tag: StructuralTag, param: str, controls: Mapping[str, int]) -> str:
    lark = Lark(controls)
    parts: list[str] = []
    for structure in tag.structures:
        trigger = next(t for t in tag.triggers if structure.begin.startswith(t))
        schema = lark.json(checked_schema(structure.schema_, param))
        rest = lark.text(structure.begin[len(trigger) :])
        whole = f"{rest} {schema} {lark.text(structure.end)}"
        parts.append(lark.rule(lark.behind_text(trigger, whole)))
    return lark.grammar(f"({' | '.join(parts)})* {TEXT}")


def _of_schema(schema: JsonSchema, structure: StructuredOutputs) -> str:
    whitespace = structure.whitespace_pattern
    if whitespace is None and not structure.disable_any_whitespace:
        whitespace = _ANY_WHITESPACE
    options: dict[str, Any] = {
        "lenient": False,
        "coerce_one_of": False,
        "whitespace_flexible": whitespace is not None,
        "whitespace_pattern": whitespace,
    }
    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema),
        overrides=options,  # pyright: ignore[reportArgumentType] - a plain dict of its keys
    )


def checked_schema(schema: JsonSchema | str, param: str) -> JsonSchema:
    """The schema, parsed and within its bounds, and without formats that JSON Schema does not know.

    Raises:
        RequestError: it is too large or too deep, or would switch checks off.
        ValueError: it is no JSON.
    """
    if isinstance(schema, str):
        _check("characters", len(schema), MAX_SCHEMA_CHARS, param)
        parsed: Any = orjson.loads(schema)  # bounds the depth
        if not isinstance(parsed, dict | bool):
            raise ValueError("it is no JSON object")
        schema = cast("JsonSchema", parsed)
    for parts, (depth, key, value) in enumerate(_parts(schema), start=1):
        _check("levels", depth, MAX_SCHEMA_DEPTH, param)
        _check("parts", parts, MAX_SCHEMA_PARTS, param)
        if key == "x-guidance":
            raise ValueError(_NO_SWITCHES)
        if key == "pattern" and isinstance(value, str):
            _check("characters in a pattern", len(value), MAX_REGEX_LENGTH, param)
    _check("characters", len(json.dumps(schema)), MAX_SCHEMA_CHARS, param)
    return cast("JsonSchema", _with_known_formats(schema, named=False))


def _with_known_formats(value: Any, *, named: bool) -> Any:
    """The same without formats of others (`int32`, `color`), which constrain nothing: who does not
    know a format is to ignore it (JSON Schema, validation, section 7).

    `named`: the keys are names of properties or definitions.
    """
    if isinstance(value, list):
        return [_with_known_formats(item, named=False) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    return {
        key: _with_known_formats(item, named=not named and key in _NAMED)
        if key not in _VALUES or named
        else item
        for key, item in cast("dict[str, Any]", value).items()
        if named or key != "format" or not isinstance(item, str) or item in _FORMATS
    }


def _parts(schema: JsonSchema) -> Iterator[tuple[int, str | None, Any]]:
    """Every value of the schema: (its depth, the keyword it belongs to, itself)."""
    ahead: list[tuple[int, str | None, Any]] = [(1, None, schema)]
    while ahead:
        depth, key, value = ahead.pop()
        yield depth, key, value
        if isinstance(value, dict):
            # Names of properties are the caller's own and no keywords.
            named = key in _NAMED
            ahead += [
                (depth + 1, None if named else name, item)
                for name, item in cast("dict[str, Any]", value).items()
            ]
        elif isinstance(value, list):
            ahead += [(depth + 1, None, item) for item in cast("list[Any]", value)]


def _check(what: str, count: int, limit: int, param: str) -> None:
    if count > limit:
        raise RequestError(
            f"{param} has {count} {what}, and {limit} are allowed; simplify it",
            param=param,
            code="invalid_grammar",
        )
