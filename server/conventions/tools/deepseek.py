"""DeepSeek's models: V3.1 writes a name and JSON, V3 and R1 a fenced block of JSON."""

import re
from collections.abc import Mapping
from typing import Any, Final

from ..reader import Reader
from .format import CallSyntax, ToolFormat
from .readers import NAME, NamedCallReader

_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_BEGIN, _SEPARATOR, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCE, _FENCE_END = "```json", "```"
_HEAD: Final = re.compile(
    rf"\s*(?:\w+{_SEPARATOR}\s*(?=\S+\s*{_FENCE}))?({NAME})\s*(?:{_SEPARATOR}|{_FENCE})\s*"
)
"""Before a fence stands the type of the tool, too."""


class DeepSeek(ToolFormat):
    """See the module."""

    name = "deepseek"
    markers = (_CALLS, _CALLS_END, _BEGIN, _SEPARATOR, _END)

    def recognises(self, template: str) -> bool:
        """See `ToolFormat`."""
        return _CALLS in template

    def syntax(self, template: str) -> CallSyntax:
        """See `ToolFormat`."""
        fenced = _FENCE in template
        return CallSyntax(
            begin=_CALLS,
            before=_BEGIN + ("function" + _SEPARATOR if fenced else ""),
            middle=f"\n{_FENCE}\n" if fenced else _SEPARATOR,
            after=f"\n{_FENCE_END}{_END}" if fenced else _END,
            between="\n" if fenced else "",
            end=_CALLS_END,
            trigger=_CALLS,
        )

    def reader(self, tools: Mapping[str, Mapping[str, Any]]) -> Reader:
        """See `ToolFormat`."""
        return NamedCallReader(_BEGIN, _HEAD, (_FENCE_END, _END), (_CALLS, _CALLS_END))


DEEPSEEK = DeepSeek()
