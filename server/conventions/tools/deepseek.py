"""DeepSeek's models: V3.1 writes a name and JSON, V3 and R1 a fenced block of JSON."""

from collections.abc import Collection

from ..reader import Reader
from .format import CallSyntax, ToolFormat
from .readers import NamedCallReader

_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_BEGIN, _SEPARATOR, _END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCE, _FENCE_END = "```json", "```"


class _DeepSeekReader(NamedCallReader):
    """V3: `function<｜tool▁sep｜>NAME`, a fence and JSON in it, in place of a name and JSON."""

    def __init__(self) -> None:
        super().__init__(_BEGIN, _SEPARATOR, _END, outer=(_CALLS, _CALLS_END))

    def read_name(self) -> str | None:
        """See `NamedCallReader`."""
        name, found, behind = self.left.partition(_SEPARATOR)
        if not found or (not behind.strip() and not self.ended):
            return None
        if not behind.lstrip().startswith("{"):
            name, found, behind = behind.partition(_FENCE)
            if not found:
                return None
        self.left = behind
        return name

    def skip_end(self) -> bool:
        """See `NamedCallReader`."""
        return self.skip(_FENCE_END) is not None and super().skip_end()


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

    def reader(self, names: Collection[str]) -> Reader:
        """See `ToolFormat`."""
        return _DeepSeekReader()


DEEPSEEK = DeepSeek()
