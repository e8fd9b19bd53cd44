"""Chats with tools: what is asked, and what calls have to be."""

import json
from typing import Any

import httpx
import jsonschema

CHATS = "/v1/chat/completions"
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "units": {"type": "array", "items": {"enum": ["C", "F"]}, "maxItems": 2},
        "exact": {"type": "boolean"},
    },
    "required": ["city", "units"],
    "additionalProperties": False,
}
TIME: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"enum": ["utc", "local"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": WEATHER, "get_time": TIME}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
QUESTION = {"role": "user", "content": "How is the weather in Rome?"}
HISTORY: list[dict[str, Any]] = [
    QUESTION,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Rome", "units": []}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "Sunny and warm."},
    {"role": "user", "content": "And tomorrow?"},
]
THOUGHTS: dict[str, dict[str, Any]] = {"harmony": {"thinking": {"budget": 5}}}
"""Models of this kind always think: a random one would not stop."""


def ask(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"messages": [QUESTION], "tools": TOOLS, "max_tokens": 400, "seed": 3, **fields}
    body = {**THOUGHTS.get(str(http.headers.get("x-kind")), {}), **body}
    answer = http.post(CHATS, json=body)
    assert answer.status_code == 200, answer.text
    assert "x-penstock-ignored" not in answer.headers
    return answer.json()


def check_calls(choice: dict[str, Any], names: set[str]) -> list[dict[str, Any]]:
    """The calls of an answer that ended: right names, arguments that match, ids of their own."""
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls", choice
    assert message["content"] is None
    calls: list[dict[str, Any]] = message["tool_calls"]
    assert len({call["id"] for call in calls}) == len(calls)
    for call in calls:
        assert call["type"] == "function"
        assert call["function"]["name"] in names
        jsonschema.validate(
            json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]]
        )
    return calls
