"""Tools that are wrong, too many, or without parameters; and parsers that are named."""

import time
from pathlib import Path
from typing import Any

import pytest

from penstock.server.conventions.frame import closed
from tests.server.process import ServeProcess
from tests.server.tool_chats import CHATS, HISTORY, QUESTION, TIME, ask

SIMPLE = {"type": "function", "function": {"name": "f"}}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [SIMPLE, SIMPLE]}, "tools", "two functions with the name 'f'"),
    ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(10_000)]},
     "tools", "at most 128"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type",
     "'custom'"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name",
     "form"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice", "no tools"),
    ({"tool_choice": {"type": "function", "function": {"name": "g"}}},
     "tool_choice.function.name", "'g' is none of the tools"),
    ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {
        "mode": "auto", "tools": [{"type": "function", "function": {"name": "g"}}]}}},
     "tool_choice.allowed_tools.tools.0.function.name", "'g' is none"),
    ({"tool_choice": "always"}, "tool_choice", "'required'"),
    ({"messages": [QUESTION, {"role": "tool", "content": "x", "tool_call_id": "c"}]},
     "messages.1.tool_call_id", "no message before"),
    ({"messages": [QUESTION, {"role": "tool", "content": "x"}]}, "messages.1", "no tool_call_id"),
    ({"messages": [{**HISTORY[1], "role": "user", "content": "x"}]}, "messages.0",
     "only an assistant"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {
        "properties": {"a": {"not": {}}}}}}], "tool_choice": "required"},
     "tools.0.function.parameters", "cannot be used"),
    ({"tools": [SIMPLE, {"type": "function", "function": {"name": "g", "strict": True, "parameters":
        {"properties": {"a": {"type": "array", "uniqueItems": True}}}}}]},
     "tools.1.function.parameters", "cannot be used"),
    ({"tool_choice": "required", "structured_outputs": {"grammar": 'start: "a"'}},
     "structured_outputs.grammar", "beside tools"),
    ({"functions": [{"name": "f"}]}, "functions", "tools"),
    ({"tool_choice": "required", "decoding": {"tot": {"generate": "propose"}}},
     "tools", "cannot hold"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED, ids=lambda case: str(case)[:40])
def test_what_is_wrong_is_named(
    server: ServeProcess, fields: dict[str, Any], param: str, words: str
) -> None:
    with server.client() as http:
        body = {"messages": [QUESTION], "tools": [SIMPLE], "max_tokens": 5, **fields}
        answer = http.post(CHATS, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert words in error["message"], error


def test_tools_are_bounded_together(server: ServeProcess) -> None:
    """Each alone is small enough, and each is compiled to find out which one is wrong."""
    properties = {f"property_{i}": {"type": "string"} for i in range(100)}
    tools = [
        {
            "type": "function",
            "function": {"name": f"f{i}", "parameters": {"properties": properties}},
        }
        for i in range(128)
    ]
    began_s = time.monotonic()
    with server.client() as http:
        body = {"messages": [QUESTION], "tools": tools, "max_tokens": 5}
        for held in ({"tool_choice": "required"}, {"parallel_tool_calls": False}):
            answer = http.post(CHATS, json={**body, **held, "truncate_prompt_tokens": 100})
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["param"] == "tools"
            assert "send fewer tools" in answer.json()["error"]["message"]
        free = http.post(CHATS, json={**body, "truncate_prompt_tokens": 100})
        assert free.status_code == 200, free.text
    assert time.monotonic() - began_s < 10


@pytest.mark.parametrize("parameters", [None, {}, {"type": "object"}, {"properties": {}}])
def test_a_function_without_parameters_gets_none(server: ServeProcess, parameters: Any) -> None:
    function = {"name": "f"} if parameters is None else {"name": "f", "parameters": parameters}
    with server.client() as http:
        fields = {"tools": [{"type": "function", "function": function}], "max_tokens": 60}
        (choice,) = ask(http, **fields, tool_choice="required", parallel_tool_calls=False)[
            "choices"
        ]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == "{}"


def test_schemas_that_speak_of_other_properties_stay_as_they_are() -> None:
    open_one = {"properties": {"x": {"enum": [1]}}, "additionalProperties": {"enum": [2]}}
    either = {"properties": {"x": True}, "anyOf": [{"required": ["x"]}, {"required": ["y"]}]}
    for schema in (open_one, either, {"$ref": "#/$defs/a"}, True, {"type": "string"}):
        assert closed(schema) == schema
    nested = {
        "properties": {"a": {"items": {"properties": {}}}},
        "$defs": {"b": {"properties": {}}},
    }
    assert closed(nested) == {
        "properties": {"a": {"items": {"properties": {}, "additionalProperties": False}}},
        "$defs": {"b": {"properties": {}, "additionalProperties": False}},
        "additionalProperties": False,
    }


def test_parameters_that_no_grammar_holds_are_fine_where_nobody_insists(
    server: ServeProcess,
) -> None:
    odd = {"properties": {"a": {"type": "array", "uniqueItems": True}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": odd}}
    form = {"type": "json_schema", "json_schema": {"name": "t", "schema": TIME}}
    with server.client() as http:
        for fields in ({}, {"parallel_tool_calls": False}, {"response_format": form}):
            ask(http, tools=[tool], max_tokens=5, **fields)


def test_a_plug_in_or_another_parser_may_be_named(tiny_llama: Path, tmp_path: Path) -> None:
    arguments = [str(tiny_llama), "--threads", "1", "--tool-parser"]
    with ServeProcess([*arguments, "off"], tmp_path / "log") as server, server.client() as http:
        body = {"messages": [QUESTION], "tools": [SIMPLE], "max_tokens": 5}
        assert http.post(CHATS, json=body).status_code == 200
        answer = http.post(CHATS, json={**body, "tool_choice": "required"})
        assert answer.json()["error"]["param"] == "tool_choice"
    with ServeProcess([*arguments, "nobody"], tmp_path / "log2", wait_ready=False) as server:
        assert server.process.wait(30) == 2
        assert "there is no 'nobody'" in server.log
