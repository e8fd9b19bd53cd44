"""Mistral's models: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, and, in templates with
`[ARGS]`, `[TOOL_CALLS]name[ARGS]{...}` for each call; with `[CALL_ID]`, an id behind the name."""

import re
from collections.abc import Mapping
from typing import Any, Final

from ..parts import Said
from ..reader import Edge, Reader
from .format import CallSyntax, ShortIds, ToolFormat
from .readers import NAME, JsonCallReader, NamedCallReader

_BEGIN, _ID, _ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_HEAD: Final = re.compile(
    rf"\s*({NAME})\s*(?:{re.escape(_ID)}\s*(?:(?P<id>[A-Za-z0-9]{{9}})|[^\[{{]*)\s*)?"
    rf"(?:{re.escape(_ARGS)}\s*)?"
)
"""Some models leave `[ARGS]` out. Templates insist on ids of nine letters and digits."""


class _MistralReader(Reader):
    """Which of the two it is, the first character behind `[TOOL_CALLS]` tells."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: Reader | None = None
        self._edge = Edge()
        self._held: list[str] = []
        self._step = self._outside

    def step(self) -> bool:
        """See `Reader`."""
        return self._step()

    def _outside(self) -> bool:
        text, found = self.before(_BEGIN)
        self.found.append(Said(self._edge.add(text)))
        if found:
            self._held = [self._edge.take(), _BEGIN]
            self._step = self._choose
        elif self.ended:
            self.found.append(Said(self._edge.take()))
        return found

    def _choose(self) -> bool:
        text = self.left.lstrip()
        self._held.append(self.left[: len(self.left) - len(text)])
        self.left = text
        if not text and not self.ended:
            return False
        if text.startswith("["):
            self._calls = JsonCallReader(_BEGIN, "]", opening="[", between=",", accepts=bool)
        else:
            self._calls = NamedCallReader(_BEGIN, _HEAD, ())
        self.left, self._step = "".join(self._held) + text, self._pass_on
        return True

    def _pass_on(self) -> bool:
        assert self._calls is not None
        self.found += self._calls.push(self.left)
        self.left = ""
        if self.ended:
            self.found += self._calls.finish()
        return False


class Mistral(ShortIds, ToolFormat):
    """See the module."""

    name = "mistral"
    markers = (_BEGIN, _ID, _ARGS)

    def recognises(self, template: str) -> bool:
        """See `ToolFormat`."""
        return _BEGIN in template

    def syntax(self, template: str) -> CallSyntax:
        """See `ToolFormat`."""
        if _ARGS in template:
            before_id = _ID if _ID in template else ""
            return CallSyntax(
                before=_BEGIN, before_id=before_id, middle=_ARGS, after="", trigger=_BEGIN
            )
        return CallSyntax(
            begin=_BEGIN + "[",
            before='{"name": "',
            middle='", "arguments": ',
            after="}",
            between=", ",
            end="]",
            trigger=_BEGIN,
        )

    def reader(self, tools: Mapping[str, Mapping[str, Any]]) -> Reader:
        """See `ToolFormat`."""
        return _MistralReader()


MISTRAL = Mistral()
