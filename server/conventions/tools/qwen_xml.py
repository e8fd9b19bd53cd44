"""Qwen3-Coder, Qwen3.5 and others:

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

Their templates write it. Models often leave `<tool_call>` out, and now and then `</parameter>`.
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
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_NAME: Final = re.compile(rf"""\s*["']?({NAME})["']?\s*""")


class _QwenReader(TaggedCallReader):
    value_end = _PARAMETER_END
    ends: Mapping[str, Sequence[str]] = {
        _PARAMETER_END: (_PARAMETER, _FUNCTION_END, _END),
        _FUNCTION_END: (_END,),
    }
    trims = True

    def _outside(self) -> bool:
        found = self.say_before(_BEGIN, _FUNCTION)
        if found is not None:
            self._step = self._open if found == _BEGIN else self._bare_name
        return found is not None

    def _open(self) -> bool:
        found = self.skip(_FUNCTION)
        if found is not None:
            self._step = self._name if found else self._is_text
        return found is not None

    def _bare_name(self) -> bool:
        """Without `<tool_call>`, only the name of a tool makes it a call."""
        return self._named(must_be_known=True)

    def _name(self) -> bool:
        return self._named(must_be_known=False)

    def _named(self, *, must_be_known: bool) -> bool:
        head = self.before_tag(">")
        if head is None and self.waits:
            return False
        name = None if head is None else _NAME.fullmatch(head)
        if name is None or (must_be_known and name[1] not in self._tools):
            self._step = self._is_text
            return True
        self.left = self.left[1:]
        self._begin(name[1])
        return True

    def _inside(self) -> bool:
        found = self.skip(_PARAMETER)
        if found is None:
            return False
        if found:
            self._step = self._parameter
            return True
        for end in (_FUNCTION_END, _END):
            ended = self.skip(end)
            if ended is None:
                return False
            if ended:
                return self._end_call()
        return self._broken()

    def _parameter(self) -> bool:
        key = self.before_tag(">")
        if key is None:
            return not self.waits and not self.ended and self._broken()
        self.left = self.left[1:]
        self._begin_value(key.strip().strip("\"'"))
        return True

    def _behind(self) -> bool:
        found = self.skip(_END)
        if found:
            self.taken.clear()
        self._step = self._behind if found is None else self._is_text
        return found is not None


class QwenXml(ToolFormat):
    """See the module."""

    name = "qwen_xml"
    markers = (_BEGIN, _END)

    def recognises(self, template: str) -> bool:
        """See `ToolFormat`."""
        return _FUNCTION in template and _PARAMETER in template

    def syntax(self, template: str) -> CallSyntax:
        """See `ToolFormat`."""
        del template
        return CallSyntax(
            before=f"{_BEGIN}\n{_FUNCTION}",
            middle=">\n",
            after=f"{_FUNCTION_END}\n{_END}",
            between="\n",
            trigger=_BEGIN,
        )

    def reader(self, tools: Mapping[str, Mapping[str, Any]]) -> Reader:
        """See `ToolFormat`."""
        return _QwenReader(tools)

    def arguments(self, parameters: Mapping[str, Any], lark: Lark) -> str:
        """See `ToolFormat`: one parameter after the other, in the schema's order."""
        end = f"\n{_PARAMETER_END}\n"
        values = argument_values(parameters, lark, end=end, without=_PARAMETER_END)
        if values is None:
            name = lark.text_before(r"[A-Za-z0-9_.\-]{1,64}", ">\n", ">")
            value = lark.text_before("(?s:.*)", end, _PARAMETER_END)
            return f"({lark.text(_PARAMETER)} {name} {value})*"
        parts = [
            f"({lark.text(f'{_PARAMETER}{name}>' + chr(10))} {value}){'' if required else '?'}"
            for name, (value, required) in values.items()
        ]
        return " ".join(parts) or '""'


QWEN_XML = QwenXml()
