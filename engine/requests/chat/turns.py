"""Rearranges messages as a chat template wants them: roles, order, strings or lists of parts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

Message = Mapping[str, Any]
Systems = Literal["anywhere", "first", "none"]

BETWEEN_TURNS = "\n\n"
BETWEEN_PARTS = "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The forms of content that a template prints for messages of one role."""

    strings: bool = True
    parts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """What a template accepts.

    `forms`: by role; strings for a role without an entry. `systems`: where system messages may
    stand: "first" is one in front, "none" is nowhere. `repeats`: whether two user turns may follow
    each other. `arguments`: how it wants the arguments of tool calls: as objects, or as their JSON;
    None: it does not print calls and their results.
    """

    forms: Mapping[str, Form] = field(default_factory=dict[str, Form])
    systems: Systems = "anywhere"
    repeats: bool = True
    arguments: Literal["objects", "json"] | None = None


def arranged(messages: Sequence[Message], wants: Wants) -> list[dict[str, Any]]:
    """The messages in a shape that the template accepts; no text is lost."""
    turns = [dict(message) for message in messages]
    if wants.systems != "anywhere":
        turns = _in_front(turns, wants.systems)
    if not wants.repeats:
        turns = _joined_repeats(turns)
    for turn in turns:
        if "content" in turn:
            form = wants.forms.get(str(turn.get("role")), Form())
            turn["content"] = _in_form(turn["content"], form)
        if "tool_calls" in turn and wants.arguments == "objects":
            turn["tool_calls"] = [_with_object(call) for call in turn["tool_calls"]]
    return turns


def content_text(content: Any) -> str | None:
    """The text of a message's content; None: it has parts that are not text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not _is_text_parts(content):
        return None
    return BETWEEN_PARTS.join(part["text"] for part in content)


def _with_object(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call whose arguments are an object; what is none stays text."""
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = function["arguments"]
    return {**call, "function": {**function, "arguments": arguments}}


def _in_front(turns: list[dict[str, Any]], systems: Systems) -> list[dict[str, Any]]:
    said = [turn for turn in turns if turn.get("role") == "system"]
    others = [turn for turn in turns if turn.get("role") != "system"]
    if not said or (systems == "first" and len(said) == 1 and turns[0] is said[0]):
        return turns
    content = _joined([turn.get("content") for turn in said])
    if systems == "first":
        return [{**said[0], "content": content}, *others]
    first = next((i for i, turn in enumerate(others) if turn.get("role") == "user"), None)
    if first is None:
        return [{"role": "user", "content": content}, *others]
    whole = _joined([content, others[first].get("content")])
    return [*others[:first], {**others[first], "content": whole}, *others[first + 1 :]]


def _joined_repeats(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for turn in turns:
        last = kept[-1] if kept else None
        both_users = last is not None and last.get("role") == turn.get("role") == "user"
        if last is not None and both_users and last.get("name") == turn.get("name"):
            whole = _joined([last.get("content"), turn.get("content")])
            kept[-1] = {**last, "content": whole}
        else:
            kept.append(turn)
    return kept


def _joined(contents: Sequence[Any]) -> Any:
    """Several contents joined into one: a string if all are text, else a list of parts."""
    texts = [content_text(content) for content in contents]
    if all(text is not None for text in texts):
        return BETWEEN_TURNS.join(text for text in texts if text)
    parts: list[Any] = []
    for content in contents:
        if parts and content:
            parts.append({"type": "text", "text": BETWEEN_TURNS})
        parts += _as_parts(content)
    return parts


def _in_form(content: Any, form: Form) -> Any:
    if isinstance(content, str):
        return content if form.strings or not form.parts else _as_parts(content)
    text = None if form.parts else content_text(content)
    return content if text is None else text


def _as_parts(content: Any) -> list[Any]:
    if content is None or isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return list(content)


def _is_text_parts(content: Any) -> TypeGuard[Sequence[Mapping[str, str]]]:
    return isinstance(content, list | tuple) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in content
    )
