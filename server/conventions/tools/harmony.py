"""OpenAI's harmony format (gpt-oss): messages in channels, calls addressed to functions.

https://github.com/openai/harmony describes it.
"""

import re
from collections.abc import Collection
from typing import Final

from ..parts import Arguments, Said, Thought
from ..reader import Reader, begun
from .format import CallSyntax, ToolFormat
from .readers import CallReader

_CHANNEL, _MESSAGE, _START = "<|channel|>", "<|message|>", "<|start|>"
_CONSTRAIN: Final = "<|constrain|>"
_ENDS: Final = ("<|end|>", "<|call|>", "<|return|>", _START)
_TO: Final = re.compile(r"to=(?:functions\.)?([A-Za-z0-9_.-]+)")


class _HarmonyReader(CallReader):
    """Reads headers (`_header`) and bodies (`_body`) of messages in turn."""

    def __init__(self) -> None:
        super().__init__()
        self._step = self._header
        self._kind: type[Thought | Said | Arguments] = Said
        self._told: set[type] = set()

    def step(self) -> bool:
        """See `Reader`."""
        return self._step()

    def _header(self) -> bool:
        if not self.left:
            return False
        markers = (_CHANNEL, _START, " to=")
        header_like = self.left.startswith(markers) or begun(self.left, markers) == len(self.left)
        header, found, behind = self.left.partition(_MESSAGE)
        if not found and header_like and not self.ended:
            return False
        if not found or not (header_like or header.startswith("assistant")):
            # A continued message, or no harmony at all.
            self._kind, self._step = Said, self._body
            return True
        self.left = behind
        recipient = _TO.search(header)
        if recipient is not None:
            self.begin_call(recipient[1])
            self._kind = Arguments
        else:
            self._kind = Thought if "analysis" in header else Said
            if self._kind in self._told:
                self.found.append(self._kind("\n"))  # several messages of one channel
        self._step = self._body
        return True

    def _body(self) -> bool:
        places = [(self.left.find(end), end) for end in _ENDS]
        there = [(at, end) for at, end in places if at >= 0]
        if there:
            at, end = min(there)
            text, self.left = self.left[:at], self.left[at + len(end) :]
            self._step = self._header
        else:
            keep = 0 if self.ended else begun(self.left, _ENDS)
            text, self.left = self.left[: len(self.left) - keep], self.left[len(self.left) - keep :]
        if text:
            self._told.add(self._kind)
            self.found.append(self._kind(text))
        return bool(there)


class Harmony(ToolFormat):
    """See the module."""

    name = "harmony"
    markers = (_CHANNEL, _MESSAGE, _CONSTRAIN, *_ENDS)
    always = True

    def recognises(self, template: str) -> bool:
        """See `ToolFormat`."""
        return _CHANNEL in template

    def syntax(self, template: str) -> CallSyntax:
        """See `ToolFormat`."""
        del template
        return CallSyntax(
            before=_CHANNEL + "commentary to=functions.",
            middle=f" {_CONSTRAIN}json{_MESSAGE}",
            after="",
            trigger=_CHANNEL + "commentary to=",
            parallel=False,
            thought=_START + "assistant",
        )

    def reader(self, names: Collection[str]) -> Reader:
        """See `ToolFormat`."""
        return _HarmonyReader()


HARMONY = Harmony()
