"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes 2 Pro, Qwen2.5, Qwen3."""

from collections.abc import Mapping
from typing import Any

from ..reader import Reader
from .format import CallSyntax, ToolFormat
from .readers import JsonCallReader

_BEGIN, _END = "<tool_call>", "</tool_call>"
_OTHERS = ("<function=", "<arg_key>", "<|tool_call>")
"""Formats with the same tags and no JSON between them."""


class Hermes(ToolFormat):
    """See the module."""

    name = "hermes"
    markers = (_BEGIN, _END)

    def recognises(self, template: str) -> bool:
        """See `ToolFormat`."""
        return _BEGIN in template and not any(other in template for other in _OTHERS)

    def syntax(self, template: str) -> CallSyntax:
        """See `ToolFormat`."""
        del template
        return CallSyntax(
            before=_BEGIN + '\n{"name": "',
            middle='", "arguments": ',
            after="}\n" + _END,
            between="\n",
            trigger=_BEGIN,
        )

    def reader(self, tools: Mapping[str, Mapping[str, Any]]) -> Reader:
        """See `ToolFormat`."""
        return JsonCallReader(_BEGIN, _END, accepts=bool)


HERMES = Hermes()
