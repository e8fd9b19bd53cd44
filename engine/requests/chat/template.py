"""A model's chat template: finds out by trial what it accepts, and renders chats with it."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from ....errors import RequestError
from . import wire
from .environment import template_variables
from .turns import Form, Message, Systems, Wants, arranged
from .workers import Workers

logger = logging.getLogger(__name__)

RENDER_CPU_S: Final = 2.0
"""CPU time of one rendering. Ordinary templates render a hundred messages in milliseconds."""

RENDER_MEMORY_BYTES: Final = 256 * 2**20
_WORKERS: Final = 2
_CALL_ID: Final = "penstock1"
"""Nine letters and digits, on which Mistral's templates insist."""
_WORDS: Final = ("penstockone", "penstocktwo", "penstockthree", "penstockfour")


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedChat:
    """The text of a chat's prompt. `said`: (start, end) of the characters that a caller wrote.

    The template wrote everything else, and control tokens may stand only there.
    """

    text: str
    said: tuple[tuple[int, int], ...] = ()

    def part(self, start: int, stop: int) -> "RenderedChat":
        """The characters from `start` to `stop`, with their marks."""
        cut = ((max(start, a) - start, min(stop, b) - start) for a, b in self.said)
        return RenderedChat(text=self.text[start:stop], said=tuple(s for s in cut if s[0] < s[1]))


class ChatTemplate:
    """The chat templates of one tokenizer. Thread-safe.

    `templates`: one, or several by name: "default", and "tool_use" for chats with tools.
    `constants`: the tokenizer's special tokens by name.
    """

    def __init__(self, templates: str | Mapping[str, str], constants: Mapping[str, str]) -> None:
        named = {"default": templates} if isinstance(templates, str) else dict(templates)
        self._names = list(named)
        self._sources = tuple(named.values())
        start = wire.Start(
            sources=self._sources,
            constants=dict(constants),
            cpu_s=RENDER_CPU_S,
            memory_bytes=RENDER_MEMORY_BYTES,
        )
        self._workers = Workers(start, limit=_WORKERS)

    @cached_property
    def variables(self) -> frozenset[str]:
        """Variables that it reads from its caller, such as `enable_thinking`."""
        return template_variables(self._sources[self._index_of(tools=False)])

    @cached_property
    def takes_tools(self) -> bool:
        """Whether it tells the model of tools, and prints calls and their results."""
        return "tools" in template_variables(self.source) and self.wants.arguments is not None

    @property
    def source(self) -> str:
        """Its text: of several, that for chats with tools."""
        return self._sources[self._index_of(tools=True)]

    @cached_property
    def wants(self) -> Wants:
        """What it accepts, found out by rendering a few tiny chats."""
        try:
            wants = _Trial(self).wants()
        except _NoAnswerError as error:
            logger.warning("the chat template cannot be tried: %s", error)
            return Wants()
        if wants.systems != "anywhere":
            logger.info(
                "the chat template takes %s; system messages are put %s",
                "one system message, in front" if wants.systems == "first" else "no system message",
                "there together" if wants.systems == "first" else "before the first user message",
            )
        return wants

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> RenderedChat:
        """The prompt of a chat. `tools`: that the model may call, for templates that read `tools`.

        Raises:
            RequestError: the template refuses these messages, or fails on them.
        """
        reply = self._reply(
            arranged(messages, self.wants),
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables={**(variables or {}), "tools": list(tools)} if tools else variables,
            tools=bool(tools),
        )
        if isinstance(reply, wire.Refused):
            raise RequestError(
                f"the model's chat template cannot render these messages: {reply.reason}",
                param="messages",
                code="chat_template_error",
            )
        return RenderedChat(text=reply.text, said=reply.said)

    def close(self) -> None:
        """End the processes that render."""
        self._workers.close()

    def trial(self, messages: list[dict[str, Any]], *, tools: bool = False) -> str | None:
        """The text of the messages, not rearranged; None: they are refused."""
        reply = self._reply(messages, add_generation_prompt=True, tools=tools)
        if isinstance(reply, wire.Rendered):
            return reply.text
        if reply.ended:
            raise _NoAnswerError(reply.reason)
        return None

    def _reply(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
        tools: bool = False,
    ) -> wire.Rendered | wire.Refused:
        request = wire.Render(
            template=self._index_of(tools=tools),
            messages=messages,
            variables=dict(variables or {}),
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        return self._workers.render(request)

    def _index_of(self, *, tools: bool) -> int:
        for name in ("tool_use", "default") if tools else ("default",):
            if name in self._names:
                return self._names.index(name)
        return 0


class _NoAnswerError(Exception):
    """The process that rendered a trial has ended."""


class _Trial:
    """Renders tiny chats and checks which of their words reach the prompt."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def wants(self) -> Wants:
        forms = {"user": self._form([], "user", [])}
        user = forms["user"]
        forms["assistant"] = self._form([self._turn("user", 0, user)], "assistant", [])
        forms["system"] = self._form([], "system", [self._turn("user", 0, user)])
        return Wants(
            forms=forms,
            systems=self._systems(forms),
            repeats=self._repeats(forms),
            arguments=self._arguments(forms),
        )

    def _arguments(self, forms: Mapping[str, Form]) -> Literal["objects", "json"] | None:
        name, key, value, result = _WORDS
        begin = self._turn("user", 0, forms["user"])
        kinds: dict[Literal["objects", "json"], Any] = {
            "objects": {key: value},
            "json": json.dumps({key: value}),
        }
        for kind, arguments in kinds.items():
            function = {"name": name, "arguments": arguments}
            call = {"id": _CALL_ID, "type": "function", "function": function}
            turns = [
                begin,
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": _CALL_ID, "name": name, "content": result},
            ]
            text = self._template.trial(turns, tools=True) or ""
            # Neither Python's spelling of a dictionary nor JSON inside a string of JSON.
            between = r"\W*(?:[:=>]|</\w+>\s*<\w+>)\W*"
            arrived = re.search(f"{key}{between}{value}", text) and result in text
            if arrived and f"{{'{key}'" not in text and f'\\"{key}' not in text:
                return kind
        return None

    def _form(self, before: list[dict[str, Any]], role: str, behind: list[dict[str, Any]]) -> Form:
        word, other = _WORDS[1], _WORDS[2]
        # A template that prints the list as such prints the second word, too.
        part = {"type": "text", "text": word, "annotation": other}
        as_string = self._template.trial([*before, {"role": role, "content": word}, *behind])
        as_parts = self._template.trial([*before, {"role": role, "content": [part]}, *behind])
        strings = as_string is not None and word in as_string
        parts = as_parts is not None and word in as_parts and other not in as_parts
        return Form(strings=strings or not parts, parts=parts)

    def _systems(self, forms: Mapping[str, Form]) -> Systems:
        def turn(role: str, number: int) -> dict[str, Any]:
            return self._turn(role, number, forms[role])

        user, system = turn("user", 0), turn("system", 1)
        if not self._arrive([user]):
            return "anywhere"  # it refuses even that: trials tell nothing
        later = [user, turn("assistant", 2), turn("system", 1), turn("user", 3)]
        if self._arrive([system, turn("system", 2), user]) and self._arrive(later):
            return "anywhere"
        return "first" if self._arrive([system, user]) else "none"

    def _repeats(self, forms: Mapping[str, Form]) -> bool:
        user = forms["user"]
        one, two = self._turn("user", 0, user), self._turn("user", 1, user)
        return self._arrive([one, two]) or not self._arrive([one])

    def _arrive(self, turns: list[dict[str, Any]]) -> bool:
        """Whether all words of the messages are in the prompt, in their order."""
        text = self._template.trial(turns)
        at = 0
        for turn in turns:
            content = turn["content"]
            word = content if isinstance(content, str) else content[0]["text"]
            at = -1 if text is None else text.find(word, at)
            if at < 0:
                return False
        return True

    def _turn(self, role: str, number: int, form: Form) -> dict[str, Any]:
        word = _WORDS[number]
        content = word if form.strings else [{"type": "text", "text": word}]
        return {"role": role, "content": content}
