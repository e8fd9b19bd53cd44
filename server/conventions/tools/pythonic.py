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
from .readers import LONGEST_HEAD, NAME, CallReader

_SIGN: Final = re.compile(r"func_name1?\(params_name1")
_JSON_NAMES: Final = {"true": True, "false": False, "null": None}
_SHARED: Final = ("$defs", "definitions")
_PLAIN: Final = {
    "type", "properties", "required", "additionalProperties", "title", "description", "$schema",
    *_SHARED,
}  # fmt: skip
_HEAD: Final = re.compile(rf"\s*({NAME})\s*")
_QUOTED: Final = r"""(?: "[^"\\]*(?:\\.[^"\\]*)*(?:"|\Z) | '[^'\\]*(?:\\.[^'\\]*)*(?:'|\Z) )"""
_TOKEN: Final = re.compile(
    r"""(?P<kept> \"{3}.*?(?:\"{3}|\Z) | '{3}.*?(?:'{3}|\Z) """
    rf"| \b[A-Za-z]{{1,2}}{_QUOTED} ) | (?P<text>{_QUOTED}) | \b(?P<name>\w++)(?=\s*=)",
    re.DOTALL | re.VERBOSE,
)
"""Texts, with and without triple quotes or a prefix, and names of arguments."""
_ESCAPE: Final = re.compile(r"\\([^\n'\"\\abfnrtvxuUN0-7])|\\.", re.DOTALL)


class _PythonReader(CallReader):
    """Reads calls once each is whole: a Python value is not JSON before it has ended."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(self._begin)
        self._names = names
        self._name = ""
        self._value = JsonValue()
        self._arguments: list[str] = []

    def _begin(self) -> bool:
        found = self.skip("[")
        if found is not None:
            self._step = self._head if found else self._is_text
        return found is not None

    def _head(self) -> bool:
        if self.called and self.skip("]"):
            return self._end()
        end = self.left.find("(", 0, LONGEST_HEAD)
        begun = end < 0 and (not self.left.strip() or _HEAD.fullmatch(self.left) is not None)
        if begun and len(self.left) < LONGEST_HEAD and not self.ended:
            return False
        head = _HEAD.fullmatch(self.left, 0, max(end, 0))
        if head is None or head[1] not in self._names:
            self._step = self._is_text
            return True
        self.take(end)
        self._name, self._step = head[1], self._call
        self._value, self._arguments = JsonValue(("([{", ")]}"), "\"'"), []
        return True

    def _call(self) -> bool:
        """Take the rest of a call, up to its last bracket."""
        end, done = self._value.take(self.left)
        self._arguments.append(self.left[:end])
        self.take(end)
        if not done and not self.ended:
            return False
        arguments = _parsed("".join(self._arguments)) if done else None
        if arguments is None:
            self._step = self._is_text
            return True
        self.begin_call(self._name)
        self.found.append(Arguments(arguments))
        self._step = self._behind
        return True

    def _behind(self) -> bool:
        self.skip("")
        if not self.left:
            return False
        if self.left[0] == "]":
            return self._end()
        self._step = self._head if self.skip(",") else self._is_text
        return True

    def _end(self) -> bool:
        """The list has ended: what follows is text."""
        self.left = self.left.removeprefix("]")
        self.taken.clear()
        self._step = self.only_text
        return True

    def _is_text(self) -> bool:
        """It is no call, nor does one follow."""
        self.give_up()
        self._step = self.only_text
        return True


def _parsed(text: str) -> str | None:
    """JSON of the arguments, in brackets, of a call; None: they are not literals with names."""
    try:
        call = ast.parse("_" + _TOKEN.sub(_python, text), mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        values: dict[str, Any] = {}
        for word in call.keywords:
            if word.arg is None:
                return None
            values[word.arg[1:]] = _value(word.value)
        found = json.dumps(values, ensure_ascii=False, allow_nan=False)
        found.encode()
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError):
        return None
    return found


def _python(token: re.Match[str]) -> str:
    """As Python takes it: words of the language may be names here, and texts may be JSON's."""
    if token["name"]:
        return f"_{token['name']}"
    if not token["text"]:
        return token[0]
    try:
        return repr(json.loads(token["text"], strict=False))
    except ValueError:
        return _ESCAPE.sub(lambda found: "\\" * bool(found[1]) + found[0], token["text"])


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

    def reader(self, tools: Mapping[str, Mapping[str, Any]]) -> Reader:
        """See `ToolFormat`."""
        return _PythonReader(tools)

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
