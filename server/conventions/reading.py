"""One choice of a chat as clients get it: content, thought and calls, whole or piece by piece."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .parts import Arguments, Call, Part, Said
from .reader import AnswerReader

Fields = dict[str, Any]
"""Fields of a message, or what an event adds to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the choices of one chat are read.

    `reader`: makes a reader of one choice. `new_id`: makes the id of a call. `opened`, `begin`,
    `end`: of thoughts: whether the prompt has opened one, and the tokens around it; None: not one
    token. `shows_thoughts`: whether the caller wants to have them.
    """

    reader: Callable[[], AnswerReader]
    new_id: Callable[[], str]
    opened: bool = False
    begin: int | None = None
    end: int | None = None
    shows_thoughts: bool = True

    def choice(self) -> "ChoiceReading":
        """Begin to read a choice."""
        return ChoiceReading(self)


class ChoiceReading:
    """Reads one choice. `calls`: how many it has. `thought_tokens`: tokens of its thought."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._reader = reading.reader()
        self._thinks: bool | None = True if reading.opened else None
        if reading.end is None:  # nothing tells where a thought ends
            self._thinks = False
        self.calls = 0
        self.thought_tokens = 0
        self._ids: set[str] = set()

    def push(self, text: str, tokens: Sequence[int], *, last: bool) -> Fields:
        """What an event adds to the message; `last`: the choice has ended."""
        self._count(tokens)
        parts = self._reader.push(text)
        if last:
            parts += self._reader.finish()
        fields: Fields = {}
        for part in parts:
            self._add(fields, part)
        return fields

    def message(self, text: str, tokens: Sequence[int]) -> Fields:
        """The fields of the whole message."""
        fields = self.push(text, tokens, last=True)
        for call in fields.get("tool_calls", ()):
            del call["index"]
        return {"content": None if self.calls else "", **fields}

    def _add(self, fields: Fields, part: Part) -> None:
        if isinstance(part, Call):
            function = {"name": part.name, "arguments": ""}
            call = {"index": self.calls, "id": self._id(part), "type": "function"}
            fields.setdefault("tool_calls", []).append({**call, "function": function})
            self.calls += 1
        elif isinstance(part, Arguments):
            calls: list[Fields] = fields.setdefault("tool_calls", [])
            if not calls:
                calls.append({"index": self.calls - 1, "function": {"arguments": ""}})
            calls[-1]["function"]["arguments"] += part.text
        elif isinstance(part, Said):
            fields["content"] = fields.get("content", "") + part.text
        elif self._reading.shows_thoughts:
            for name in ("reasoning_content", "reasoning"):
                fields[name] = fields.get(name, "") + part.text

    def _id(self, call: Call) -> str:
        """The model's id of a call, if no other call has it."""
        own = call.id
        found = self._reading.new_id() if own is None or own in self._ids else own
        self._ids.add(found)
        return found

    def _count(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if self._thinks is None:
                self._thinks = token == self._reading.begin
            if not self._thinks:
                return
            self.thought_tokens += 1
            self._thinks = token != self._reading.end
