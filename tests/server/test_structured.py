"""Structured output over HTTP: every way to ask for it, streams, the SDK's models, refusals."""

import json
import re
import time
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.server.conftest import MODEL
from tests.server.process import ServeProcess

CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["cat", "dog"]},
        "legs": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["animal", "legs"],
    "additionalProperties": False,
}
OBJECT = {"type": "object"}
LARK = 'start: "<" ("a" | "b"){1,9} ">"'
GBNF = 'root ::= "<" [ab] [ab]? [ab]? ">"'
TAG: dict[str, Any] = {
    "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}],
    "triggers": ["<f>"],
}
WAYS: list[tuple[dict[str, Any], Any]] = [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
     SCHEMA),
    ({"response_format": {"type": "json_schema",
                          "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}}, SCHEMA),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, SCHEMA),
    ({"structured_outputs": {"json": SCHEMA}}, SCHEMA),
    ({"structured_outputs": {"json": json.dumps(SCHEMA), "whitespace_pattern": " ?"}}, SCHEMA),
    ({"guided_json": SCHEMA}, SCHEMA),
    ({"json_schema": SCHEMA}, SCHEMA),
    ({"format": SCHEMA}, SCHEMA),
    ({"structured_outputs": {"regex": "[0-9]{2}-[a-c]{1,9}"}}, "[0-9]{2}-[a-c]{1,9}"),
    ({"guided_regex": "x{3,5}y"}, "x{3,5}y"),
    ({"regex": "x{3,5}y"}, "x{3,5}y"),
    ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
    ({"guided_choice": ["left", "right"]}, "left|right"),
    ({"structured_outputs": {"grammar": LARK}}, "<[ab]{1,9}>"),
    ({"grammar": GBNF}, "<[ab]{1,3}>"),
    ({"ebnf": GBNF}, "<[ab]{1,3}>"),
    ({"guided_grammar": GBNF}, "<[ab]{1,3}>"),
]  # fmt: skip


def check(text: str, wanted: Any) -> None:
    if isinstance(wanted, str):
        assert re.fullmatch(wanted, text), text
    else:
        jsonschema.validate(json.loads(text), wanted)


def chat(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Write a story about a cat."}]
    return {"messages": messages, "max_tokens": 60, "seed": 4, **fields}


@pytest.mark.parametrize(("way", "wanted"), WAYS, ids=lambda case: str(case)[:50])
def test_every_way_to_ask_is_obeyed(http: httpx.Client, way: dict[str, Any], wanted: Any) -> None:
    answer = http.post(CHATS, json=chat(**way, temperature=1.5))
    assert answer.status_code == 200, answer.text
    assert "x-penstock-ignored" not in answer.headers
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] is None
    check(choice["message"]["content"], wanted)
    body = {"prompt": "Once", "max_tokens": 60, "n": 2, "temperature": 1, **way}
    for other in http.post(COMPLETIONS, json=body).json()["choices"]:
        check(other["text"], wanted)


def test_any_object_is_one(http: httpx.Client) -> None:
    for way in ({"response_format": {"type": "json_object"}}, {"format": "json"}):
        for seed in range(4):
            answer = http.post(CHATS, json=chat(**way, seed=seed)).json()["choices"][0]
            if answer["finish_reason"] == "stop":
                jsonschema.validate(json.loads(answer["message"]["content"]), OBJECT)
            else:
                assert answer["message"]["content"].startswith("{")


def test_a_stream_has_the_same_text(http: httpx.Client) -> None:
    body = chat(**WAYS[0][0], temperature=0)
    whole = http.post(CHATS, json=body).json()["choices"][0]["message"]["content"]
    answer = http.post(CHATS, json={**body, "stream": True})
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    deltas = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert "".join(deltas) == whole
    check(whole, SCHEMA)


def test_a_structural_tag_constrains_what_it_begins(http: httpx.Client) -> None:
    messages = [
        {"role": "user", "content": "Write a story about a cat."},
        {"role": "assistant", "content": "A cat."},
    ]
    for way in (
        {"response_format": {"type": "structural_tag", **TAG}},
        {"structured_outputs": {"structural_tag": TAG}},
        {"structured_outputs": {"structural_tag": json.dumps(TAG)}},
    ):
        body = {"messages": messages, "max_tokens": 40, "temperature": 0, **way}
        answer = http.post(CHATS, json=body)
        assert answer.status_code == 200, answer.text
        for part in re.findall("<f>(.*?)</f>", answer.json()["choices"][0]["message"]["content"]):
            check(part, SCHEMA)


class Animal(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat", "dog", "mouse"]
    legs: int = Field(ge=0, le=100)
    friends: list[Literal["sun", "moon"]] = Field(max_length=2)


def test_the_sdk_parses_into_its_models(server: ServeProcess) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    for seed in range(3):
        answer = client.chat.completions.parse(
            model=MODEL,
            messages=[{"role": "user", "content": "Tell me about an animal."}],
            response_format=Animal,
            seed=seed,
        )
        assert isinstance(answer.choices[0].message.parsed, Animal)
    with client.chat.completions.stream(
        model=MODEL,
        messages=[{"role": "user", "content": "Tell me about an animal."}],
        response_format=Animal,
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Animal)


def test_formats_that_json_schema_does_not_know_constrain_nothing(http: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {
            "format": {"enum": ["color"]},
            "n": {"type": "integer", "format": "int32", "minimum": 7, "maximum": 7},
            "c": {"const": {"format": "color"}},
            "d": {"type": "string", "format": "date"},
        },
        "required": ["format", "n", "c", "d"],
        "additionalProperties": False,
    }
    body = chat(structured_outputs={"json": schema}, max_tokens=120)
    answer = http.post(CHATS, json=body).json()
    said = json.loads(answer["choices"][0]["message"]["content"])
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", said.pop("d"))
    assert said == {"format": "color", "n": 7, "c": {"format": "color"}}
    refused = http.post(CHATS, json=chat(structured_outputs={"json": {"format": "uri-template"}}))
    assert refused.status_code == 400
    assert "uri-template" in refused.json()["error"]["message"]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "json_schema",
                          "json_schema": {"name": "a", "schema": {"not": {}}}}},
     "response_format.json_schema.schema", "invalid_grammar"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_parameter"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_parameter"),
    ({"structured_outputs": {"json": {}, "choice": ["a"]}}, "structured_outputs",
     "invalid_parameter"),
    ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs.regex", "invalid_grammar"),
    ({"guided_choice": []}, "guided_choice", "invalid_parameter"),
    ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_regex", "invalid_parameter"),
    ({"guided_json": {}, "response_format": {"type": "json_object"}}, "guided_json",
     "invalid_parameter"),
    ({"structured_outputs": {"json": {}}, "response_format": {"type": "json_object"}},
     "structured_outputs", "invalid_parameter"),
    # Older names, under which a mistake is named, too.
    ({"guided_json": {"not": {}}}, "guided_json", "invalid_grammar"),
    ({"json_schema": {"not": {}}}, "json_schema", "invalid_grammar"),
    ({"format": {"not": {}}}, "format", "invalid_grammar"),
    ({"guided_regex": "(?=a)b"}, "guided_regex", "invalid_grammar"),
    ({"regex": "(?=a)b"}, "regex", "invalid_grammar"),
    ({"guided_grammar": "start: b"}, "guided_grammar", "invalid_grammar"),
    ({"ebnf": "start: b"}, "ebnf", "invalid_grammar"),
    ({"guided_json": {}, "decoding": {"tot": {"generate": "propose"}}}, "guided_json",
     "unsupported_combination"),
    ({"structured_outputs": {"no_such": 1}}, "structured_outputs.no_such", "invalid_parameter"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED, ids=lambda case: str(case)[:50])
def test_what_cannot_be_held_is_a_400(
    http: httpx.Client, fields: dict[str, Any], param: str, code: str
) -> None:
    answer = http.post(CHATS, json=chat(**fields))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert param in error["message"]
    assert ("structured_outputs" in error["message"]) == ("structured_outputs" in fields)


CRAFTED: list[dict[str, Any]] = [
    {"regex": "((a{1,99}){1,99}){1,99}b"},
    {"regex": "(.*a.*b.*c.*d){30}"},
    {"regex": "|".join(f".{{{n}}}x" for n in range(1, 300))},
    {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"},
                                                   "minItems": 3}}}},
    {"json": {"type": "object", "patternProperties": {f"^.*{i}.*$": {"type": "string"}
                                                     for i in range(40)}}},
    {"grammar": "start: x+\nx: x x | \"a\" | \"aa\""},
    {"json": {"anyOf": [{"type": "object", "properties": {f"k{i}": {"type": "string"}
                         for i in range(n)}} for n in range(60)]}},
]  # fmt: skip


@pytest.mark.parametrize("structure", CRAFTED, ids=lambda case: str(case)[:40])
def test_a_crafted_grammar_is_refused_or_ends_in_bounded_time(
    http: httpx.Client, structure: dict[str, Any]
) -> None:
    began_s = time.monotonic()
    answer = http.post(CHATS, json=chat(structured_outputs=structure, max_tokens=30))
    assert answer.status_code in (200, 400, 500), answer.text
    if answer.status_code == 500:
        assert answer.json()["error"]["code"] == "constraint_error"
    assert time.monotonic() - began_s < 5
    assert http.post(CHATS, json=chat(max_tokens=1)).status_code == 200
