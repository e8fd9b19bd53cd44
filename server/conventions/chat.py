"""What a chat says about tools and thoughts, put into the model's conventions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock.errors import RequestError

from ...decoding.constraint.thinking import Thinking
from .frame import AnswerFrame, Mode, Offered
from .reader import AnswerReader, PlainReader
from .reading import Reading
from .tools.plain_json import described

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ...engine.requests.chat.template import RenderedChat
    from ...engine.requests.tokenizer import Tokenizer
    from .choose import Conventions
    from .tools.format import Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """What a chat says about tools.

    `tools`: all that the model is told of. `offered`: those that it may call. `mode`: whether it
    has to. `several`: more than one call may stand in an answer. `held`: calls are held to a
    grammar in any case.
    """

    tools: Sequence[Tool] = ()
    offered: Sequence[Offered] = ()
    mode: Mode = "auto"
    several: bool = True
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtUse:
    """What a chat says about thoughts: `budget` in tokens; whether they are read apart (`apart`),
    and shown (`shown`)."""

    budget: int | None = None
    apart: bool = True
    shown: bool = True


class ChatConventions:
    """One chat in the conventions of its model."""

    def __init__(
        self, model: Conventions, tokenizer: Tokenizer, tools: ToolUse, thoughts: ThoughtUse
    ) -> None:
        if model.tools is None and tools.mode == "required":
            raise RequestError(
                "tool_choice asks for a call, and this server reads none (--tool-parser off); "
                "leave it out",
                param="tool_choice",
                code="unsupported_parameter",
            )
        self._model = model
        self._tokenizer = tokenizer
        self._tools = tools
        self._thoughts = thoughts

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages as the chat template takes them."""
        if self._model.described:
            return described(messages, self._tools.tools)
        form = self._model.tools
        return [
            dict(turn) if form is None else _with_ids(turn, form.template_id) for turn in messages
        ]

    @property
    def template_tools(self) -> list[dict[str, Any]]:
        """The tools as the chat template takes them."""
        return [] if self._model.described else [tool.for_template for tool in self._tools.tools]

    def frame(self, prompt: RenderedChat) -> AnswerFrame | None:
        """What may stand around the text of the answer; None: nothing."""
        form, thoughts = self._model.tools, self._model.thinking
        thinks = thoughts is not None and thoughts.opened(prompt.text) is not None
        if form is None or not self._tools.offered:
            if not thinks:
                return None
            form = None
        return AnswerFrame(
            form=form,
            syntax=None if form is None else form.syntax(self._model.template),
            tools=self._tools.offered,
            mode=self._tools.mode,
            several=self._tools.several,
            held=self._tools.held,
            before="" if thoughts is None else thoughts.answer,
            thinks=thinks,
        )

    def thinking(self, prompt: RenderedChat) -> Thinking | None:
        """What the engine has to know of thoughts; None: there are none, or nothing marks them.

        Raises:
            RequestError: the thought has a budget, and cannot be bounded.
        """
        form = self._model.thinking
        opened = None if form is None else form.opened(prompt.text)
        end = None if form is None else self._tokenizer.added_id(form.end)
        begin = None if form is None else self._tokenizer.added_id(form.begin)
        if form and opened is not None and end is not None and (opened or begin is not None):
            never = [self._tokenizer.added_id(text) for text in form.never]
            opening = self._tokenizer.encode(form.begin, add_special_tokens=False)
            return Thinking(
                begin=begin,
                end=end,
                opened=opened,
                opening=tuple(opening) if form.always else (),
                budget=self._thoughts.budget,
                never=tuple(token for token in never if token is not None),
            )
        if self._thoughts.budget is not None and (form is None or opened is not None):
            raise RequestError(
                "thinking.budget bounds thoughts, and this model "
                + ("has none" if form is None else "does not mark them with tokens of their own")
                + "; leave it out",
                param="thinking.budget",
                code="unsupported_parameter",
            )
        return None

    def thought_closed(self, prompt: RenderedChat) -> bool:
        """Whether the prompt has closed the thought of a model that thinks."""
        form = self._model.thinking
        return form is not None and form.opened(prompt.text) is None

    def reading(self, prompt: RenderedChat) -> Reading | None:
        """How to read the answer; None: it is text."""
        tools, thoughts = self._model.tools, self._model.thinking
        calls = tools is not None and (tools.always or bool(self._tools.offered))
        opened = None if thoughts is None else thoughts.opened(prompt.text)
        apart = opened is not None and self._thoughts.apart
        if not calls and not apart:
            return None
        offered = {each.tool.name: each.tool.parameters for each in self._tools.offered}

        def reader() -> AnswerReader:
            return AnswerReader(
                thoughts.reader(opened=bool(opened)) if thoughts and apart else PlainReader(),
                tools.reader(offered) if tools and calls else PlainReader(),
            )

        token = self._tokenizer.added_id
        return Reading(
            reader=reader,
            new_id=str if tools is None else tools.new_id,
            opened=bool(opened),
            begin=token(thoughts.begin) if thoughts and apart else None,
            end=token(thoughts.end) if thoughts and apart else None,
            shows_thoughts=self._thoughts.shown,
        )

    @property
    def shown_tokens(self) -> frozenset[int]:
        """Special tokens that readers have to see."""
        markers: list[str] = []
        if self._model.tools is not None:
            markers += self._model.tools.markers
        if self._model.thinking is not None:
            markers += self._model.thinking.markers
        found = {self._tokenizer.added_id(marker) for marker in markers}
        return frozenset(token for token in found if token in self._tokenizer.special_ids)


def _with_ids(turn: Mapping[str, Any], template_id: Any) -> dict[str, Any]:
    changed = dict(turn)
    if "tool_call_id" in turn:
        changed["tool_call_id"] = template_id(turn["tool_call_id"])
    if "tool_calls" in turn:
        changed["tool_calls"] = [
            {**call, "id": template_id(call["id"])} for call in turn["tool_calls"]
        ]
    return changed
