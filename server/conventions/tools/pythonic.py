"""`[name(key=value, ...), ...]`, Python's syntax: Llama 4, ToolACE and others."""

import ast
import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from ....engine.requests.lark import Lark
from ..parts import Arguments
from ..reader import Reader
from .format import CallSyntax, ToolFormat
from .json_text import JsonValue
from .readers import CallReader

_SIGN: Final = re.compile(r"func_name1?\(params_name1")
_JSON_NAMES: Final = {"true": True, "false": False, "null": None}
_SHARED: Final = ("$defs", "definitions")
_PLAIN: Final = {
    "type", "properties", "required", "additionalProperties", "title", "description", "$schema",
    *_SHARED,
}  # fmt: skip
_BEGINNING: Final = re.compile(r"\s*\[\s*([A-Za-z_][\w.]*)\s*\(")


class _PythonReader(CallReader):
    """Reads calls once each is whole: a Python value is not JSON before it has ended."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self._names = names
        self._step = self._beginning
        self._read = 0
        self._end: JsonValue | None = None

    def step(self) -> bool:
        """See `Reader`."""
        return self._step()

    def _beginning(self) -> bool:
        text = self.left.lstrip()
        known = _BEGINNING.match(text)
        if known is None and not self.ended and re.fullmatch(r"(\[\s*[\w.]*\s*)?", text):
            return False
        is_call = known is not None and known[1] in self._names
        self._step = self._calls if is_call else self._text
        return True

    def _text(self) -> bool:
        self.say(self.left)
        self.left = ""
        return False

    def _calls(self) -> bool:
        """Take a call that has ended: up to a `)` at which it can be parsed."""
        if self._end is None:
            self.left = self.left if self.called else self.left.lstrip()
            at = self.left.find("(", self._read)
            if at < 0:
                self._read = len(self.left)
                return self._none_follows()
            self._read, self._end = at, JsonValue(("([{", ")]}"), "\"'")
        self._read, done = self._end.take(self.left, self._read)
        if not done:
            return self._none_follows()
        call = _parsed(self.left[: self._read].lstrip("[, \n"))
        if call is None or call[0] not in self._names:
            self._step = self._text
            return True
        self.left, self._read, self._end = self.left[self._read :], 0, None
        self.begin_call(call[0])
        self.found.append(Arguments(call[1]))
        self._step = self._behind
        return True

    def _none_follows(self) -> bool:
        if self.ended:
            self._step = self._text
        return self.ended and bool(self.left)

    def _behind(self) -> bool:
        text = self.left.lstrip()
        if not text:
            return False
        if text[0] == ",":
            self.left, self._step = text[1:], self._calls
        else:
            self.left, self._step = text[1:] if text[0] == "]" else text, self._text
        return True


def _parsed(text: str) -> tuple[str, str] | None:
    """Name and JSON of the arguments of one whole call."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        values = {word.arg: _value(word.value) for word in call.keywords if word.arg is not None}
        return ast.unparse(call.func), json.dumps(values, ensure_ascii=False)
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError):
        return None


def _value(node: ast.expr) -> Any:
    """A literal, in which JSON's names of values count, too."""
    if isinstance(node, ast.Name) and node.id in _JSON_NAMES:
        return _JSON_NAMES[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {
            ast.literal_eval(key): _value(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }
    return ast.literal_eval(node)


class Pythonic(ToolFormat):
    """See the module."""

    name = "pythonic"

    def recognises(self, template: str) -> bool:
        """See `ToolFormat`."""
        return _SIGN.search(template) is not None

    def syntax(self, template: str) -> CallSyntax:
        """See `ToolFormat`."""
        del template
        return CallSyntax(begin="[", before="", middle="(", after=")", between=", ", end="]")

    def reader(self, names: Collection[str]) -> Reader:
        """See `ToolFormat`."""
        return _PythonReader(names)

    def arguments(self, parameters: Mapping[str, Any], lark: Lark) -> str:
        """See `ToolFormat`: the values are JSON, each behind its name, in the schema's order."""
        properties: dict[str, Any] = parameters.get("properties") or {}
        odd = set(parameters) - _PLAIN
        if odd or not all(name.isidentifier() for name in properties):
            raise ValueError(
                "calls of this model are Python's, which takes named values: "
                + (f"leave out {sorted(odd)[0]!r}" if odd else "names have to be identifiers")
            )
        shared = {key: parameters[key] for key in _SHARED if key in parameters}
        required: list[str] = parameters.get("required") or []
        # What may stand at the first place and behind another value, from the last one on.
        first, later = '""', '""'
        for name, schema in reversed(properties.items()):
            whole = {**shared, **schema} if isinstance(schema, dict) else {}
            value = lark.rule(f"{lark.text(name + '=')} {lark.json(whole)} {later}")
            without = (first, later) if name not in required else None
            first = lark.rule(value if without is None else f"{value} | {without[0]}")
            behind = f'", " {value}'
            later = lark.rule(behind if without is None else f"{behind} | {without[1]}")
        return first


PYTHONIC = Pythonic()
