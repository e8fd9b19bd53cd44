"""OpenAI's harmony format (gpt-oss): messages in channels, calls addressed to functions.

https://github.com/openai/harmony describes it.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from ..parts import Arguments, Said, Thought
from ..reader import Reader, begun
from .format import CallSyntax, ToolFormat
from .readers import LONGEST_HEAD, NAME, CallReader

_CHANNEL, _MESSAGE, _START = "<|channel|>", "<|message|>", "<|start|>"
_CONSTRAIN: Final = "<|constrain|>"
_ENDS: Final = ("<|end|>", "<|call|>", "<|return|>", _START)
_HEADERS: Final = (_CHANNEL, _START, " to=")
"""Beginnings of headers; the prompt has begun the first one."""
_CUT_HEADER: Final = re.compile(r"(?:<\|channel\|>|<\|start\|>| to=\S)[^<\n]*(?:<\|\w+\|>[^<\n]*)*")
"""A header whose message `max_tokens` has cut off: markup, and no text."""
_TO: Final = re.compile(rf"to=(?:functions\.)?({NAME})")


class _HarmonyReader(CallReader):
    """Reads headers (`_header`) and bodies (`_body`) of messages in turn."""

    def __init__(self) -> None:
        super().__init__(self._header)
        self._kind: type[Thought | Said | Arguments] = Said
        self._told: set[type] = set()
        self._before = ""

    def _header(self) -> bool:
        header_like = self.left.startswith(_HEADERS)
        if not self.ended and not header_like and begun(self.left, _HEADERS) == len(self.left):
            return False
        end = self.left.find(_MESSAGE, 0, LONGEST_HEAD) if header_like else -1
        if header_like and end < 0 and len(self.left) < LONGEST_HEAD and not self.ended:
            return False
        if end < 0 and self.ended and _CUT_HEADER.fullmatch(self.left, 0, LONGEST_HEAD):
            self.left = ""
            return False
        self._step = self._body
        if end < 0:
            # A continued message, or no harmony at all.
            self._kind, self._before = Said, ""
            self._tell(self.left[:1])
            self.left = self.left[1:]
            return True
        header, self.left = self.left[:end], self.left[end + len(_MESSAGE) :]
        recipient = _TO.search(header)
        if recipient is not None:
            self.begin_call(recipient[1])
            self._kind = Arguments
            self._told.discard(Arguments)
        else:
            self._kind = Thought if "analysis" in header else Said
        # Between several messages of one channel.
        self._before = "\n" if self._kind in self._told else ""
        return True

    def _body(self) -> bool:
        places = [(self.left.find(end), end) for end in _ENDS]
        there = [(at, end) for at, end in places if at >= 0]
        if not there:
            # What is cut off behind text may be text; behind arguments it is markup.
            said = self.ended and self._kind is not Arguments
            keep = 0 if said else begun(self.left, _ENDS)
            self._tell(self.left[: len(self.left) - keep])
            self.left = self.left[len(self.left) - keep :]
            return False
        at, end = min(there)
        self._tell(self.left[:at])
        self.left = self.left[at if end == _START else at + len(end) :]
        if self._kind is Arguments and Arguments not in self._told:
            self._tell("{}")
        self._step = self._header
        return True

    def _tell(self, text: str) -> None:
        if text:
            self.found.append(self._kind(self._before + text))
            self._told.add(self._kind)
            self._before = ""


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

    def reader(self, tools: Mapping[str, Mapping[str, Any]]) -> Reader:
        """See `ToolFormat`."""
        return _HarmonyReader()


HARMONY = Harmony()
