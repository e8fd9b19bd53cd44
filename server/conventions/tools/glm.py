"""GLM 4.5 and later:

    <tool_call>NAME
    <arg_key>KEY</arg_key>
    <arg_value>VALUE</arg_value>
    </tool_call>

From 4.7 on without line breaks.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ....engine.requests.lark import Lark
from ..reader import Reader
from .format import CallSyntax, ToolFormat
from .readers import NAME
from .tagged import TaggedCallReader, argument_values

_BEGIN, _END = "<tool_call>", "</tool_call>"
_KEY, _KEY_END = "<arg_key>", "</arg_key>"
_VALUE, _VALUE_END = "<arg_value>", "</arg_value>"
_NAME: Final = re.compile(rf"\s*({NAME})\s*")
_LINE: Final = r'"\n"?'


class _GlmReader(TaggedCallReader):
    value_end = _VALUE_END
    ends: Mapping[str, Sequence[str]] = {_VALUE_END: (_KEY, _END)}
    trims = False

    def _outside(self) -> bool:
        found = self.say_before(_BEGIN)
        if found is not None:
            self._step = self._name
        return found is not None

    def _name(self) -> bool:
        head = self.before_tag(_KEY, _END)
        if head is None and self.waits:
            return False
        name = None if head is None else _NAME.fullmatch(head)
        if name is None:
            self._step = self._is_text
            return True
        self._begin(name[1])
        return True

    def _inside(self) -> bool:
        for tag, then in ((_KEY, self._argument), (_END, self._end_call)):
            found = self.skip(tag)
            if found is None:
                return False
            if found:
                self._step = then
                return True
        return self._broken()

    def _argument(self) -> bool:
        key = self.before_tag(_KEY_END)
        if key is None:
            return not self.waits and not self.ended and self._broken()
        self._key = key.strip()
        self.take(len(_KEY_END))
        self._step = self._open_value
        return True

    def _open_value(self) -> bool:
        found = self.skip(_VALUE)
        if found:
            self._begin_value(self._key)
        elif found is False:
            return self._broken()
        return found is not None


class Glm(ToolFormat):
    """See the module."""

    name = "glm"
    markers = (_BEGIN, _END, _KEY, _KEY_END, _VALUE, _VALUE_END)

    def recognises(self, template: str) -> bool:
        """See `ToolFormat`."""
        return _KEY in template and _BEGIN in template

    def syntax(self, template: str) -> CallSyntax:
        """See `ToolFormat`."""
        del template
        return CallSyntax(before=_BEGIN, middle="", after=_END, between="\n", trigger=_BEGIN)

    def reader(self, tools: Mapping[str, Mapping[str, Any]]) -> Reader:
        """See `ToolFormat`."""
        return _GlmReader(tools)

    def arguments(self, parameters: Mapping[str, Any], lark: Lark) -> str:
        """See `ToolFormat`: one argument after the other, in the schema's order, with line breaks
        or without."""
        values = argument_values(parameters, lark, end=_VALUE_END, without=_VALUE_END)
        open_value = f"{_LINE} {lark.text(_VALUE)}"
        if values is None:
            key = lark.text_before(r"[A-Za-z0-9_.\-]{1,64}", _KEY_END, "<")
            value = lark.text_before("(?s:.*)", _VALUE_END, _VALUE_END)
            return f"({_LINE} {lark.text(_KEY)} {key} {open_value} {value})* {_LINE}"
        parts = [
            f"({_LINE} {lark.text(_KEY + name + _KEY_END)} {open_value} {value})"
            + ("" if required else "?")
            for name, (value, required) in values.items()
        ]
        return " ".join([*parts, _LINE])


GLM = Glm()
