"""Calls whose arguments stand between tags, each by itself: what `qwen_xml` and `glm` share.

Values of text properties are the text itself, all others JSON, by the schema of the function.
"""

import ast
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from ....engine.requests.lark import Lark
from ..parts import Arguments
from ..reader import begun
from .readers import LONGEST_HEAD, CallReader

Tools = Mapping[str, Mapping[str, Any]]
"""Parameters of the tools that may be called, by name."""
_EVERY: Final = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_TEXT: Final = frozenset({"string"})
_SPACE: Final = 16
"""Most white space between the end of a value and the next tag."""
_SHARED: Final = ("$defs", "definitions")
_PLAIN: Final = {
    "type", "properties", "required", "additionalProperties", "title", "description", "$schema",
    *_SHARED,
}  # fmt: skip
_OF_TEXT: Final = {
    "type", "title", "description", "default", "examples", "enum", "const", "minLength",
    "maxLength", "pattern",
}  # fmt: skip
_MOST_REFERENCES: Final = 16


class TaggedCallReader(CallReader):
    """Reads calls argument by argument; of text values the pieces as they come.

    `value_end`: the tag behind a value. `ends`: tags that may end a value, and what has to follow
    each, so that a value may hold such a tag; where `value_end` is missing, another one counts.
    `trims`: a line break at the beginning and at the end of a value is markup.
    """

    value_end: str
    ends: Mapping[str, Sequence[str]]
    trims: bool

    def __init__(self, tools: Tools) -> None:
        super().__init__(self._outside)
        self._tools = tools
        self._parameters: Mapping[str, Any] = {}
        self._types: frozenset[str] = _EVERY
        self._key = ""
        self._has_arguments = False
        self._value: list[str] = []
        starts = ("", "\n") if self.trims else ("",)
        self._tails = [start + end for end in self.ends for start in starts]

    @abstractmethod
    def _outside(self) -> bool:
        """Before a call, as a step."""

    @abstractmethod
    def _inside(self) -> bool:
        """Before an argument, or the end of the call, as a step."""

    def _begin(self, name: str) -> None:
        self.begin_call(name)
        self._parameters, self._has_arguments = self._tools.get(name, {}), False
        self._step = self._inside

    def _begin_value(self, key: str) -> None:
        self._key, self._types = key, types_of(self._parameters, key)
        self.taken.clear()
        self._value.clear()
        self._step = self._before_value

    def _before_value(self) -> bool:
        if not self.left:
            return False
        if self.trims:
            self.left = self.left.removeprefix("\n")
        if self._types == _TEXT:
            self._tell_key()
            self.found.append(Arguments('"'))
        self._step = self._in_value
        return True

    def _in_value(self) -> bool:
        text, ended = self._take_value()
        if self._types == _TEXT:
            self.found.append(Arguments(_escaped(text) + '"' * ended))
        else:
            self._value.append(text)
            if ended:
                self._tell_key()
                self.found.append(Arguments(as_json("".join(self._value), self._types)))
        if ended:
            self._step = self._inside
        return ended

    def _tell_key(self) -> None:
        key = json.dumps(self._key, ensure_ascii=False)
        self.found.append(Arguments(f"{', ' if self._has_arguments else '{'}{key}: "))
        self._has_arguments = True

    def _take_value(self) -> tuple[str, bool]:
        """Take what is certain to be of the value, and its end if that is there."""
        taken: list[str] = []
        while True:
            there = [(self.left.index(end), end) for end in self.ends if end in self.left]
            if not there:
                size = len(self.left) - begun(self.left, self._tails)
                taken.append(self.left[:size])
                self.left = "" if self.ended else self.left[size:]
                return "".join(taken), False
            at, end = min(there)
            behind = at + len(end)
            follows = self._follows(behind, self.ends[end])
            if follows is None and not self.ended:
                size = at - (self.trims and self.left[at - 1 : at] == "\n")
                taken.append(self.left[:size])
                self.left = self.left[size:]
                return "".join(taken), False
            if follows is not False:
                text = self.left[:at]
                taken.append(text.removesuffix("\n") if self.trims else text)
                self.left = self.left[behind if end == self.value_end else at :]
                return "".join(taken), True
            taken.append(self.left[:behind])
            self.left = self.left[behind:]

    def _follows(self, place: int, tags: Sequence[str]) -> bool | None:
        """Whether one of the tags follows, behind a little white space; None: not known yet."""
        rest = self.left[place : place + _SPACE + max(map(len, tags)) + 1]
        tag = rest.lstrip()
        if len(rest) - len(tag) > _SPACE:
            return False
        if tag.startswith(tuple(tags)):
            return True
        return None if any(each.startswith(tag) for each in tags) else False

    def _end_call(self) -> bool:
        """All arguments are known, as the end of a step."""
        self.found.append(Arguments("}" if self._has_arguments else "{}"))
        self.taken.clear()
        self._step = self._behind
        return True

    def _broken(self) -> bool:
        """Something else than an argument: the call ends, and what follows is text."""
        self.found.append(Arguments("}" if self._has_arguments else "{}"))
        self._step = self._is_text
        return True

    def _behind(self) -> bool:
        """Behind a call."""
        self._step = self._is_text
        return True

    def _is_text(self) -> bool:
        """It is no call, nor part of one."""
        self.give_up()
        self._step = self._outside
        return True

    def before_tag(self, *tags: str) -> str | None:
        """What stands before the first of the tags, taken; None: none is there, or not near."""
        near = self.left[:LONGEST_HEAD]
        there = [near.index(tag) for tag in tags if tag in near]
        if not there:
            return None
        text = near[: min(there)]
        self.take(len(text))
        return text

    @property
    def waits(self) -> bool:
        """Whether more text may bring the tag that is looked for."""
        return len(self.left) < LONGEST_HEAD and not self.ended


def types_of(parameters: Mapping[str, Any], key: str) -> frozenset[str]:
    """JSON types that an argument may have, by the function's schema; all if it does not say."""
    properties: Any = parameters.get("properties")
    found: Any = properties.get(key) if isinstance(properties, dict) else None
    return _types(found, parameters, _MOST_REFERENCES)


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> frozenset[str]:
    if not isinstance(schema, dict) or not depth:
        return _EVERY
    fields = cast("dict[str, Any]", schema)
    if "$ref" in fields:
        return _types(_referenced(fields["$ref"], root), root, depth - 1)
    named = fields.get("type")
    if isinstance(named, str):
        return frozenset({named})
    if isinstance(named, list):
        return frozenset(each for each in cast("list[Any]", named) if isinstance(each, str))
    if "const" in fields:
        return frozenset({_type_of(fields["const"])})
    if isinstance(fields.get("enum"), list):
        return frozenset(_type_of(value) for value in fields["enum"])
    for keyword in ("anyOf", "oneOf"):
        if isinstance(fields.get(keyword), list):
            parts = (_types(part, root, depth - 1) for part in fields[keyword])
            return frozenset[str]().union(*parts)
    return _EVERY


def _referenced(path: Any, root: Mapping[str, Any]) -> Any:
    if not isinstance(path, str) or not path.startswith("#/"):
        return None
    found: Any = root
    for name in path[2:].split("/"):
        found = cast("dict[str, Any]", found).get(name) if isinstance(found, dict) else None
    return found


def _type_of(value: Any) -> str:
    for kind, name in (
        (bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"),
        (dict, "object"),
    ):  # fmt: skip
        if isinstance(value, kind):
            return name
    return "null"


def as_json(text: str, types: frozenset[str]) -> str:
    """JSON of a value that may not be text only: as it is written, or the text itself.

    Templates write true, false and null as Python does, so models do, too.
    """
    written = text.strip()
    try:
        value = json.loads(written)
        found = written
    except (ValueError, RecursionError):
        value = _python(written)
        if value is None and written != "None":
            return _string(text)
        found = json.dumps(value, ensure_ascii=False)
    kind = _type_of(value)
    fits = kind in types or (kind == "integer" and "number" in types)
    return found if fits or "string" not in types else _string(text)


def _python(written: str) -> Any:
    """A Python literal that JSON can have; None: it is none."""
    try:
        value = ast.literal_eval(written)
        json.dumps(value, allow_nan=False).encode()
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return value


def _string(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def argument_values(
    parameters: Mapping[str, Any], lark: Lark, *, end: str, without: str
) -> dict[str, tuple[str, bool]] | None:
    """Of each property an expression for its value and the `end` behind it, and whether it is
    required; None: any arguments.

    `without`: what text values cannot have, since it ends them.

    Raises:
        ValueError: such arguments cannot be held.
    """
    if "properties" not in parameters:
        return None
    odd = set(parameters) - _PLAIN
    if odd:
        raise ValueError(
            "calls of this model name each argument by itself, so that "
            f"{sorted(odd)[0]!r} cannot be held; leave it out"
        )
    properties: dict[str, Any] = parameters["properties"] or {}
    required: list[str] = parameters.get("required") or []
    shared = {key: parameters[key] for key in _SHARED if key in parameters}
    found: dict[str, tuple[str, bool]] = {}
    for name, schema in properties.items():
        if not name or name != name.strip() or set(name) & set("<>\n"):
            raise ValueError(f"the name {name[:64]!r} cannot stand in a tag; send another one")
        if types_of(parameters, name) == _TEXT:
            value = lark.text_before(_pattern(_resolved(schema, parameters)), end, without)
        else:
            whole = {**shared, **schema} if isinstance(schema, dict) else schema
            value = f"{lark.json(whole)} {lark.text(end)}"
        found[name] = value, name in required
    return found


def _resolved(schema: dict[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    for _ in range(_MOST_REFERENCES):
        if "$ref" not in schema:
            break
        schema = _referenced(schema["$ref"], root)
    return schema


def _pattern(schema: dict[str, Any]) -> str | list[str]:
    """What a text has to be: a regular expression, or one of several texts.

    Raises:
        ValueError: a keyword that only JSON can be held to.
    """
    odd = set(schema) - _OF_TEXT
    if odd:
        raise ValueError(
            f"this model writes texts as they are, so that {sorted(odd)[0]!r} cannot be held; "
            "leave it out"
        )
    if "const" in schema:
        return [schema["const"]]
    if "enum" in schema:
        return [value for value in schema["enum"] if isinstance(value, str)]
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    if "pattern" not in schema:
        return rf"(?s:.){{{least},{most}}}"
    if least or most != "":
        raise ValueError("a pattern and a length cannot be held together; leave one of them out")
    pattern: str = schema["pattern"]
    begin = "" if pattern.startswith("^") else "(?s:.*)"
    end = "" if pattern.endswith("$") and not pattern.endswith("\\$") else "(?s:.*)"
    return f"{begin}({pattern.removeprefix('^')[: None if end else -1]}){end}"
