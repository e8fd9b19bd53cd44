"""How a model writes calls of tools: what a tool convention is."""

import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ....engine.requests.lark import Lark
from ..reader import Reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call. `parameters`: a JSON schema of an object. `strict`: the
    caller wants arguments that match it, whenever the function is called."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    strict: bool = False

    @property
    def for_template(self) -> dict[str, Any]:
        """As chat templates know it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": {**function, "parameters": dict(self.parameters)}}


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSyntax:
    """The text of calls that are held to a grammar:

    `begin` (`before` name `middle` arguments `after`), several of them with `between`, and `end`.
    `before_id`: between the name and an id of nine letters and digits; empty: calls have no ids.
    `trigger`: the beginning of `begin + before` that free text does not have; empty: an answer is
    either text or calls. `parallel`: the model can write several. `thought`: what follows a thought
    before the first call.
    """

    before: str
    middle: str
    after: str
    begin: str = ""
    between: str = ""
    end: str = ""
    trigger: str = ""
    parallel: bool = True
    thought: str = ""
    before_id: str = ""


class ToolFormat(ABC):
    """One way to write calls; registered under `penstock.tool_parsers`.

    `markers`: texts that its readers have to see, even where they are special tokens. `always`: its
    markup is in every answer, with or without tools.
    """

    name: str
    markers: Sequence[str] = ()
    always: bool = False

    @abstractmethod
    def recognises(self, template: str) -> bool:
        """Whether a model with this chat template writes calls like this."""

    @abstractmethod
    def syntax(self, template: str) -> CallSyntax:
        """How calls are to be written, for a model with this chat template."""

    @abstractmethod
    def reader(self, tools: Mapping[str, Mapping[str, Any]]) -> Reader:
        """A reader of one choice; `tools`: parameters of the tools that may be called, by name."""

    def arguments(self, parameters: Mapping[str, Any], lark: Lark) -> str:
        """The expression for arguments that match a schema.

        Raises:
            ValueError: this format cannot hold such arguments to a grammar.
        """
        return lark.json(parameters)

    def new_id(self) -> str:
        """An id for a call."""
        return f"call_{secrets.token_hex(12)}"

    def template_id(self, given: str) -> str:
        """A caller's id of a call as the chat template takes it."""
        return given


_SHORT_ID = 9


class ShortIds:
    """Ids of nine letters and digits, which Mistral's templates insist on."""

    def new_id(self) -> str:
        """See `ToolFormat`."""
        return secrets.token_hex(_SHORT_ID)[:_SHORT_ID]

    def template_id(self, given: str) -> str:
        """See `ToolFormat`."""
        if len(given) == _SHORT_ID and given.isascii() and given.isalnum():
            return given
        return hashlib.sha256(given.encode(errors="replace")).hexdigest()[:_SHORT_ID]
