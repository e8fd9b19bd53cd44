"""`{"name": ..., "parameters": {...}}`, perhaps behind `<|python_tag|>`: Llama 3.1 to 3.3."""

from collections.abc import Collection, Mapping
from typing import Any

from ..reader import Reader
from .format import CallSyntax, ToolFormat
from .readers import JsonCallReader

_TAG = "<|python_tag|>"


class _Llama3Reader(JsonCallReader):
    def __init__(self, names: Collection[str]) -> None:
        super().__init__("", "", between=";", accepts=names.__contains__)
        self._step = self._tag

    def _tag(self) -> bool:
        known = self.skip(_TAG) is not None
        if known:
            self._step = self._object
        return known


class Llama3(ToolFormat):
    """See the module."""

    name = "llama3"
    markers = (_TAG,)

    def recognises(self, template: str) -> bool:
        """See `ToolFormat`."""
        return _TAG in template or (
            '"parameters"' in template and "<|start_header_id|>" in template
        )

    def syntax(self, template: str) -> CallSyntax:
        """See `ToolFormat`."""
        del template
        return CallSyntax(
            before='{"name": "', middle='", "parameters": ', after="}", parallel=False
        )

    def reader(self, tools: Mapping[str, Mapping[str, Any]]) -> Reader:
        """See `ToolFormat`."""
        return _Llama3Reader(tools)


LLAMA3 = Llama3()
