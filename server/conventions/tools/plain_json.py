"""`{"name": ..., "arguments": {...}}` alone: for models without a convention of their own.

Their templates know no tools, so the tools are described in the system message, and earlier calls
and results become text.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..reader import Reader
from .format import CallSyntax, Tool, ToolFormat
from .readers import JsonCallReader

_INTRODUCTION = (
    "You can call functions. To call one, answer with nothing but a JSON object:\n"
    '{"name": NAME OF THE FUNCTION, "arguments": OBJECT WITH ITS ARGUMENTS}\n'
    "The functions, with JSON schemas of their arguments:"
)


class PlainJson(ToolFormat):
    """See the module."""

    name = "json"

    def recognises(self, template: str) -> bool:
        """See `ToolFormat`: it is what remains."""
        del template
        return False

    def syntax(self, template: str) -> CallSyntax:
        """See `ToolFormat`."""
        del template
        return CallSyntax(before='{"name": "', middle='", "arguments": ', after="}", between="\n")

    def reader(self, tools: Mapping[str, Mapping[str, Any]]) -> Reader:
        """See `ToolFormat`."""
        return JsonCallReader("", "", accepts=tools.__contains__)


JSON = PlainJson()


def described(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The messages without tool calls and results, and with the tools in a system message."""
    turns: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    if tools:
        lines = [json.dumps(tool.for_template["function"], ensure_ascii=False) for tool in tools]
        turns.append({"role": "system", "content": "\n".join([_INTRODUCTION, *lines])})
    for message in messages:
        turn = dict(message)
        if turn["role"] == "tool":
            name = names.get(turn.pop("tool_call_id", ""), "function")
            turn |= {"role": "user", "content": f"Result of {name}: {_text(turn['content'])}"}
            turn.pop("name", None)
        for call in turn.pop("tool_calls", ()):
            function = call["function"]
            names[call["id"]] = function["name"]
            name = json.dumps(function["name"])
            written = f'{{"name": {name}, "arguments": {function["arguments"] or "{}"}}}'
            turn["content"] = "\n".join(filter(None, [_text(turn.get("content")), written]))
        turns.append(turn)
    return turns


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part["text"] for part in content)
