"""Writes the table of flags into configuration.md, from the settings themselves: `make docs`."""

from pathlib import Path
from typing import Any

from penstock.server.settings.serve import ServeSettings
from penstock.settings import heading

DOCUMENT = Path(__file__).with_name("configuration.md")
BEGIN, END = "<!-- flags: begin (make docs) -->\n", "<!-- flags: end -->\n"


def table() -> str:
    """The flags of `penstock serve`: a heading and a Markdown table for each group."""
    properties = ServeSettings.model_json_schema()["properties"]
    rows: list[str] = []
    group = ""
    for name, field in ServeSettings.model_fields.items():
        schema = properties[name]
        if (title := heading(ServeSettings, name)) != group:
            rows += [f"\n### {title}\n"] if title else []
            rows += ["| flag | default | values | meaning |", "| --- | --- | --- | --- |"]
            group = title
        meaning = (field.description or "").rstrip(".")
        rows.append(
            f"| {_flag(name, schema)} | {_default(field.default)} | {_values(schema)} "
            f"| {meaning[:1].upper()}{meaning[1:]}. |"
        )
    return "\n".join(rows) + "\n"


def document(text: str) -> str:
    """`text` with the table between its markers made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


def _flag(name: str, schema: dict[str, Any]) -> str:
    if name == "model":
        return "`MODEL`"
    flag = name.replace("_", "-")
    return f"`--{flag}`, `--no-{flag}`" if schema.get("type") == "boolean" else f"`--{flag}`"


def _default(value: object) -> str:
    if value in (None, [], {}):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return f"`{','.join(map(str, value))}`"  # pyright: ignore[reportUnknownArgumentType]
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _values(schema: dict[str, Any]) -> str:
    """What is accepted: the words of a choice, or the bounds of a number."""
    options: list[dict[str, Any]] = schema.get("anyOf", [schema])
    kind = next(option for option in options if option.get("type") != "null")
    if "enum" in kind:
        return ", ".join(f"`{word}`" for word in kind["enum"])
    if kind["type"] not in ("integer", "number"):
        return {"boolean": "", "array": "words", "object": "JSON"}.get(kind["type"], "text")
    low = f"above {kind['exclusiveMinimum']}" if "exclusiveMinimum" in kind else kind["minimum"]
    high = kind["maximum"]
    return f"{low} to {_size(int(high)) if high == int(high) else high}"


def _size(number: int) -> str:
    power = number.bit_length() - 1
    return f"2^{power}" if power > 17 and number == 1 << power else str(number)


if __name__ == "__main__":
    DOCUMENT.write_text(document(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
