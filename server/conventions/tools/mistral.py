"""Mistral's models: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, and, in templates with
`[ARGS]`, `[TOOL_CALLS]name[ARGS]{...}` for each call."""

from collections.abc import Collection

from ..reader import Reader
from .format import CallSyntax, ShortIds, ToolFormat
from .readers import CallReader, JsonCallReader, NamedCallReader

_BEGIN, _ARGS = "[TOOL_CALLS]", "[ARGS]"


class _NamedReader(NamedCallReader):
    """Some models leave `[ARGS]` out."""

    def read_name(self) -> str | None:
        """See `NamedCallReader`."""
        name, found, _ = self.left.partition("{")
        if _ARGS in name or not found:
            return super().read_name()
        self.left = self.left[len(name) :]
        return name


class _MistralReader(CallReader):
    """Which of the two it is, the first character behind `[TOOL_CALLS]` tells."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: CallReader | None = None
        self._step = self._outside

    def step(self) -> bool:
        """See `Reader`."""
        return self._step()

    def _outside(self) -> bool:
        if self.say_before(_BEGIN) is None:
            return False
        self._step = self._choose
        return True

    def _choose(self) -> bool:
        text = self.left.lstrip()
        if not text and not self.ended:
            return False
        if text.startswith("["):
            self._calls = JsonCallReader("[", "]", between=",", accepts=bool)
        else:
            self._calls = _NamedReader(_BEGIN, _ARGS, "")
            text = _BEGIN + text
        self.left, self._step = text, self._pass_on
        return True

    def _pass_on(self) -> bool:
        assert self._calls is not None
        text, self.left = self.left, ""
        self.found += self._calls.push(text)
        if self.ended and not self._calls.ended:
            self.found += self._calls.finish()
        return False


class Mistral(ShortIds, ToolFormat):
    """See the module."""

    name = "mistral"
    markers = (_BEGIN, _ARGS)

    def recognises(self, template: str) -> bool:
        """See `ToolFormat`."""
        return _BEGIN in template

    def syntax(self, template: str) -> CallSyntax:
        """See `ToolFormat`."""
        if _ARGS in template:
            return CallSyntax(before=_BEGIN, middle=_ARGS, after="", trigger=_BEGIN)
        return CallSyntax(
            begin=_BEGIN + "[",
            before='{"name": "',
            middle='", "arguments": ',
            after="}",
            between=", ",
            end="]",
            trigger=_BEGIN,
        )

    def reader(self, names: Collection[str]) -> Reader:
        """See `ToolFormat`."""
        return _MistralReader()


MISTRAL = Mistral()
