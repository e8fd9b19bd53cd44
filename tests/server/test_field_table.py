"""What every field means: the table, the bodies, other servers' documents, and HTTP.

The kind: a field that changes the answer elsewhere was accepted and lost, and only a header told.
"""

from typing import Any

import httpx
import pytest
from openai.types import completion_create_params as sdk_completion
from openai.types.chat import completion_create_params as sdk_chat

from penstock.server.protocol.chat_body import ChatBody
from penstock.server.protocol.completion_body import CompletionBody
from penstock.server.protocol.field_table import ANYTHING, FIELDS, FieldMeaning
from penstock.server.protocol.generation import GenerationBody
from tests.server.bounds import PATHS, VALID
from tests.server.documented_fields import DOCUMENTED

HEADER = "x-penstock-ignored"
BODIES = {"completion": CompletionBody, "chat": ChatBody}
OWN = {name for body in BODIES.values() for name in body.model_fields}
PROBES: list[Any] = [3, "x", True, False, ["x"], {"a": 1}]
KINDS = ["completion", "chat"]


def of_kind(kind: str) -> list[FieldMeaning]:
    return [field for field in FIELDS.values() if field.kind == kind]


def test_the_table_is_complete_over_the_bodies() -> None:
    assert FIELDS.keys() >= OWN
    assert {field.name for field in of_kind("done")} <= OWN
    assert {FIELDS[name].kind for name in OWN} == {"done", "hint", "no effect"}
    assert all(field.same_as in OWN for field in of_kind("alias"))
    parts = {field.same_as for field in of_kind("part")}
    forms = {f"structured_outputs.{n}" for n in ("json", "regex", "choice", "grammar")}
    assert parts == forms | {"thinking.budget"}
    assert all(field.meaning for field in FIELDS.values() if field.kind != "refused")


@pytest.mark.parametrize("body", BODIES.values())
def test_the_description_has_other_names_too(body: type[GenerationBody]) -> None:
    properties = body.model_json_schema()["properties"]
    for field in of_kind("alias"):
        assert field.same_as is not None
        same = properties[field.same_as]
        assert properties[field.name].get("type") == same.get("type")
        assert properties[field.name].get("anyOf") == same.get("anyOf")


@pytest.mark.parametrize("whose", DOCUMENTED)
def test_the_table_knows_what_other_servers_document(whose: str) -> None:
    assert DOCUMENTED[whose] - FIELDS.keys() == set()


def test_the_table_knows_what_openai_documents() -> None:
    names = set(sdk_chat.CompletionCreateParamsBase.__annotations__)
    names |= set(sdk_completion.CompletionCreateParamsBase.__annotations__)
    assert len(names) > 30
    assert names - FIELDS.keys() == set()


def test_nothing_is_in_the_table_that_nobody_documents() -> None:
    sdk = set(sdk_chat.CompletionCreateParamsBase.__annotations__)
    sdk |= set(sdk_completion.CompletionCreateParamsBase.__annotations__)
    ours = {"decoding", "kv_cache", "thinking"}
    others = {
        "thinking_budget",
        "early_stopping",
        "functions",
        "function_call",
        "slot_id",
        "image_data",
    }
    assert FIELDS.keys() - set().union(*DOCUMENTED.values(), sdk) - ours - others == set()


@pytest.mark.parametrize("kind", KINDS)
def test_what_asks_for_nothing_is_accepted_in_silence(http: httpx.Client, kind: str) -> None:
    neutral = {
        field.name: 3 if field.neutral == ANYTHING else field.neutral[0]
        for field in of_kind("refused")
        if field.neutral
    }
    silent = {field.name: {"a": 1} for field in of_kind("no effect")} | {"user": "me"}
    answer = http.post(PATHS[kind], json={**neutral, **silent, **VALID[kind]})
    assert answer.status_code == 200, answer.text
    assert HEADER not in answer.headers


@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_the_answer_and_is_not_done_is_refused(http: httpx.Client, kind: str) -> None:
    refused = 0
    for field in of_kind("refused"):
        if field.neutral == ANYTHING:
            continue
        for probe in PROBES:
            if probe in field.neutral:
                continue
            answer = http.post(PATHS[kind], json={**VALID[kind], field.name: probe})
            error = answer.json().get("error", {})
            assert answer.status_code == 400, (field.name, probe)
            assert error["param"] == field.name
            assert error["code"] == "unsupported_parameter"
            assert field.name in error["message"]
            refused += 1
    assert refused > 300


def test_fields_of_the_other_endpoint_are_refused_unless_neutral(http: httpx.Client) -> None:
    foreign: list[tuple[str, str, Any, Any]] = [
        ("completion", "messages", None, [{"role": "user", "content": "x"}]),
        ("completion", "top_logprobs", 0, 2),
        ("completion", "continue_final_message", False, True),
        ("completion", "chat_template_kwargs", {}, {"enable_thinking": False}),
        ("completion", "tools", [], [{"type": "function", "function": {"name": "f"}}]),
        ("completion", "tool_choice", "auto", "required"),
        ("completion", "parallel_tool_calls", True, 3),
        ("completion", "thinking", {}, {"budget": 3}),
        ("completion", "include_reasoning", True, 3),
        ("completion", "separate_reasoning", False, 3),
        ("chat", "prompt", None, "x"),
        ("chat", "best_of", 1, 2),
        ("chat", "suffix", "", "x"),
    ]
    assert {name for _, name, _, _ in foreign} | {"add_generation_prompt"} == {
        field.name
        for field in of_kind("done")
        if any(field.name not in body.model_fields for body in BODIES.values())
    }
    for kind, name, neutral, value in foreign:
        fine = http.post(PATHS[kind], json={**VALID[kind], name: neutral})
        assert fine.status_code == 200, fine.text
        answer = http.post(PATHS[kind], json={**VALID[kind], name: value})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == name
        assert PATHS[kind] in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_nobody_documents_are_named(http: httpx.Client, kind: str) -> None:
    answer = http.post(PATHS[kind], json={**VALID[kind], "no_such": 1, "a\nb": 2, "store": True})
    assert answer.status_code == 200
    assert answer.headers[HEADER] == "no_such, a?b"


@pytest.mark.parametrize("kind", KINDS)
def test_hints_that_no_template_reads_are_named(http: httpx.Client, kind: str) -> None:
    hints = {"reasoning_effort": "low", "verbosity": "high", "think": True, "reasoning": {}}
    answer = http.post(PATHS[kind], json={**VALID[kind], **hints})
    assert answer.status_code == 200
    assert set(answer.headers[HEADER].split(", ")) == hints.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_other_names_are_the_same_field(http: httpx.Client, kind: str) -> None:
    for field in of_kind("alias"):
        target = field.same_as
        assert target is not None
        request = {name: value for name, value in VALID[kind].items() if name != target}
        values = {"max_tokens": (3, 4), "n": (2, 3), "include_stop_str_in_output": (True, False)}
        value, other = values[target]
        answer = http.post(PATHS[kind], json={**request, field.name: value})
        assert answer.status_code == 200, answer.text
        assert HEADER not in answer.headers
        if target == "max_tokens":
            assert answer.json()["usage"]["completion_tokens"] <= 3
        if target == "n":
            assert len(answer.json()["choices"]) == 2
        both = http.post(PATHS[kind], json={**request, field.name: value, target: other})
        assert both.status_code == 400
        assert both.json()["error"]["param"] == field.name
        assert target in both.json()["error"]["message"]
        same = http.post(PATHS[kind], json={**request, field.name: value, target: value})
        assert same.status_code == 200
