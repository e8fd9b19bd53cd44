"""Writes the tables of fields into api.md, from the bodies and the table that the server uses.

`make docs` runs it.
"""

import json
from pathlib import Path
from typing import Any

from penstock.server.protocol.chat_body import ChatBody
from penstock.server.protocol.completion_body import CompletionBody
from penstock.server.protocol.field_table import ANYTHING, FIELDS, FieldMeaning, Kind
from penstock.server.protocol.token_bodies import (
    DetokenizeBody,
    TokenizeChatBody,
    TokenizeTextBody,
)

DOCUMENT = Path(__file__).with_name("api.md")
BEGIN, END = "<!-- fields: begin (make docs) -->\n", "<!-- fields: end -->\n"
GENERATING = {"completions": CompletionBody, "chats": ChatBody}
TOKENS = {
    "/tokenize, text": TokenizeTextBody,
    "/tokenize, chat": TokenizeChatBody,
    "/detokenize": DetokenizeBody,
}


def tables() -> str:
    """All tables, as Markdown."""
    return "\n".join([_done(), _aliases(), _hints(), _no_effect(), _refused(), _token_bodies()])


def document(text: str) -> str:
    """`text` with the tables between its markers made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{tables()}{END}{after}"


def _of_kind(kind: Kind) -> list[FieldMeaning]:
    return [field for field in FIELDS.values() if field.kind == kind]


def _done() -> str:
    lines = ["## Done", "", "| field | of | values | meaning |", "| --- | --- | --- | --- |"]
    for field in _of_kind("done"):
        having = {of: body for of, body in GENERATING.items() if field.name in body.model_fields}
        of = "both" if len(having) == 2 else ", ".join(having)
        values = dict.fromkeys(_values(body, field.name) for body in having.values())
        lines.append(f"| `{field.name}` | {of} | {'; '.join(values)} | {field.meaning} |")
    return "\n".join(lines) + "\n"


def _aliases() -> str:
    lines = ["## Other names", "", "| field | the same as |", "| --- | --- |"]
    others = [*_of_kind("alias"), *_of_kind("part")]
    lines += [f"| `{field.name}` | `{field.same_as}` |" for field in others]
    return "\n".join(lines) + "\n"


def _hints() -> str:
    lines = ["## Hints", "", "| field | what the template is told |", "| --- | --- |"]
    lines += [f"| `{field.name}` | {field.meaning} |" for field in _of_kind("hint")]
    return "\n".join(lines) + "\n"


def _no_effect() -> str:
    by_reason: dict[str, list[str]] = {}
    for field in _of_kind("no effect"):
        by_reason.setdefault(field.meaning, []).append(f"`{field.name}`")
    lines = ["## Without effect", "", "| fields | because |", "| --- | --- |"]
    lines += [f"| {', '.join(names)} | {reason} |" for reason, names in by_reason.items()]
    return "\n".join(lines) + "\n"


def _refused() -> str:
    lines = ["## Refused", "", "| field | unless it is | |", "| --- | --- | --- |"]
    for field in _of_kind("refused"):
        if field.neutral == ANYTHING:
            continue
        details = [
            f"`{other.name}`"
            for other in FIELDS.values()
            if other.neutral == ANYTHING and other.meaning.endswith(f"`{field.name}`")
        ]
        unless = ", ".join(f"`{json.dumps(value)}`" for value in field.neutral)
        note = "; ".join(
            part
            for part in (
                field.meaning,
                f"details, which alone ask for nothing: {', '.join(details)}" if details else "",
            )
            if part
        )
        lines.append(f"| `{field.name}` | {unless or 'absent'} | {note} |")
    return "\n".join(lines) + "\n"


def _token_bodies() -> str:
    lines = [
        "## /tokenize and /detokenize",
        "",
        "| endpoint | field | values |",
        "| --- | --- | --- |",
    ]
    for endpoint, body in TOKENS.items():
        lines += [
            f"| {endpoint} | `{name}` | {_values(body, name)} |" for name in body.model_fields
        ]
    return "\n".join(lines) + "\n"


def _values(body: type[Any], name: str) -> str:
    """What is accepted: types, and the bounds of numbers, texts and lists."""
    schema = body.model_json_schema()
    return _described(schema["properties"][name], schema.get("$defs", {}))


def _described(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _described(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    options: list[dict[str, Any]] = schema.get("anyOf", schema.get("oneOf", []))
    if options:
        words = [_described(option, definitions) for option in options]
        return " or ".join(dict.fromkeys(word for word in words if word != "null"))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{word}`" for word in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "integer" | "number":
            low = f"above {schema['exclusiveMinimum']}" if "exclusiveMinimum" in schema else None
            return f"{low or _number(schema['minimum'])} to {_number(schema['maximum'])}"
        case "boolean":
            return "true, false"
        case "string":
            return f"text{_size(schema, 'Length', ' characters')}"
        case "array":
            items = _described(schema.get("items", {}), definitions)
            return f"list{_size(schema, 'Items', '')} of {items}"
        case "object":
            return f"object{_size(schema, 'Properties', ' entries')}"
        case "null":
            return "null"
        case _:
            return "a word of at most 64 characters, a number, true or false"


def _number(value: float) -> str:
    for power in (31, 63):
        if abs(value) in (2**power, 2**power - 1) and isinstance(value, int):
            size = f"2^{power}" if abs(value) == 2**power else f"(2^{power} - 1)"
            return f"-{size}" if value < 0 else size.strip("()")
    return str(value)


def _size(schema: dict[str, Any], kind: str, unit: str) -> str:
    return f" (at most {schema[f'max{kind}']}{unit})" if f"max{kind}" in schema else ""


if __name__ == "__main__":
    DOCUMENT.write_text(document(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
