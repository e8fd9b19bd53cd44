"""The description at /openapi.json, beside what the server does.

The kind: a description that nobody reads but programs, and that is wrong where programs look. It is
valid as a document, every reference in it resolves, and real answers of every route and every
status that is easily had are described with their status, their type and their shape.
"""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client import CollectorRegistry

from penstock.errors import EngineDeadError, OverloadedError
from tests.server.scripted import Script, real_engine, scripted

KEY = {"Authorization": "Bearer k"}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
COMPLETION: dict[str, Any] = {"prompt": "Hi", "max_tokens": 3}


@pytest.fixture(scope="module")
def door(tiny_llama: Any) -> Iterator[httpx.Client]:
    engine = real_engine(tiny_llama, CollectorRegistry(), served_model_name="tiny")
    with (
        scripted(
            load=lambda: engine,
            api_key=["k"],
            max_body_bytes=2048,
            presets={"fast": {"decoding": "ngram"}},
        ) as server,
        server.client(headers=KEY) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def description(door: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = door.get("/openapi.json").json()
    return found


def operations(description: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "$ref":
                yield value
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def check_answer(description: dict[str, Any], answer: httpx.Response) -> None:
    """The status is documented, with this type, a schema that the body fits, and its headers."""
    request = answer.request
    path = request.url.path
    known = description["paths"].get(path) or description["paths"]["/v1/models/{model}"]
    documented = known[request.method.lower()]["responses"][str(answer.status_code)]
    kind = answer.headers["content-type"].partition(";")[0]
    schema = documented["content"][kind]["schema"]
    if kind == "application/json":
        whole = {**schema, "components": description["components"]}
        Draft202012Validator(whole).validate(answer.json())
    for name in ("x-request-id", "retry-after", "x-penstock-ignored"):
        if name in answer.headers:
            assert name in {header.lower() for header in documented["headers"]}


def test_it_is_valid(description: dict[str, Any]) -> None:
    assert description["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(description).validate()
    names = [operation["operationId"] for _, _, operation in operations(description)]
    assert len(names) == len(set(names)) == 12


def test_every_reference_leads_to_a_component(description: dict[str, Any]) -> None:
    components = description["components"]["schemas"]
    found = set(references(description))
    assert found
    assert {reference.removeprefix("#/components/schemas/") for reference in found} == set(
        components
    )
    assert "$defs" not in str(description)
    for schema in components.values():
        Draft202012Validator.check_schema(schema)


def test_every_operation_says_what_may_come_back(description: dict[str, Any]) -> None:
    for method, path, operation in operations(description):
        expected = {"200", "400", "403", "421", "431", "500"}
        expected |= {"401"} if path != "/health" else set()
        expected |= {"503"} if path not in {"/metrics", "/version"} else set()
        expected |= {"404"} if method == "post" or "{" in path else set()
        expected |= {"408", "413", "415", "429"} if method == "post" else set()
        assert set(operation["responses"]) == expected, path
        assert ("security" in operation) == (path != "/health")
        for status, response in operation["responses"].items():
            if status != "200":
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}


def test_keys_are_described_where_there_are_any() -> None:
    with scripted() as server, server.client() as client:
        description = client.get("/openapi.json").json()
    assert "securitySchemes" not in description["components"]
    assert all("security" not in operation for _, _, operation in operations(description))
    assert all("401" not in operation["responses"] for _, _, operation in operations(description))


FINE: list[tuple[str, dict[str, Any] | None]] = [
    ("/health", None),
    ("/metrics", None),
    ("/version", None),
    ("/v1/decoding", None),
    ("/v1/models", None),
    ("/v1/models/tiny", None),
    ("/v1/models/tiny:fast", None),
    ("/tokenize", {"prompt": "Hi", "return_token_strs": True}),
    ("/tokenize", {"messages": CHAT["messages"]}),
    ("/detokenize", {"tokens": [5, 6]}),
    ("/v1/completions", COMPLETION),
    ("/v1/completions", {**COMPLETION, "logprobs": 2, "echo": True, "return_token_ids": True}),
    ("/v1/completions", {**COMPLETION, "prompt_logprobs": 2, "n": 2, "zebra": 1}),
    ("/v1/completions", {**COMPLETION, "decoding": {"best_of": {"n": 2, "trace": "full"}}}),
    ("/v1/completions", {**COMPLETION, "max_tokens": 20, "decoding": "jacobi"}),
    ("/v1/completions", {**COMPLETION, "stream": True}),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {**CHAT, "return_token_ids": True, "prompt_logprobs": 1}),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
]


@pytest.mark.parametrize(("path", "body"), FINE, ids=lambda value: str(value)[:40])
def test_answers_are_as_described(
    door: httpx.Client, description: dict[str, Any], path: str, body: dict[str, Any] | None
) -> None:
    answer = door.get(path) if body is None else door.post(path, json=body)
    assert answer.status_code == 200, answer.text
    check_answer(description, answer)


STREAMS: list[tuple[str, str, dict[str, Any]]] = [
    ("/v1/completions", "Completion", {**COMPLETION, "logprobs": 1, "n": 2}),
    (
        "/v1/completions",
        "Completion",
        {**COMPLETION, "decoding": {"best_of": {"n": 2, "trace": "full"}}},
    ),
    ("/v1/chat/completions", "ChatCompletionChunk", {**CHAT, "logprobs": True, "top_logprobs": 1}),
    ("/v1/chat/completions", "ChatCompletionChunk", {**CHAT, "return_token_ids": True}),
]


@pytest.mark.parametrize(("path", "model", "body"), STREAMS, ids=lambda value: str(value)[:40])
def test_events_are_as_described(
    door: httpx.Client, description: dict[str, Any], path: str, model: str, body: dict[str, Any]
) -> None:
    fields = {**body, "stream": True, "stream_options": {"include_usage": True}}
    answer = door.post(path, json=fields)
    operation = description["paths"][path]["post"]["responses"]["200"]
    reference = operation["content"]["text/event-stream"]["schema"]
    assert reference == {"$ref": f"#/components/schemas/{model}"}
    validator = Draft202012Validator({**reference, "components": description["components"]})
    events = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "data: [DONE]"
    for event in events:
        validator.validate(httpx.Response(200, content=event.removeprefix("data: ")).json())


REFUSED: list[tuple[int, str, str, dict[str, Any]]] = [
    (400, "POST", "/v1/completions", {"json": {"prompt": 5}}),
    (400, "POST", "/tokenize", {"json": []}),
    (401, "GET", "/v1/models", {"headers": {"Authorization": "Bearer x"}}),
    (403, "GET", "/version", {"headers": {"Origin": "https://evil.example"}}),
    (404, "GET", "/v1/models/nope", {}),
    (404, "POST", "/v1/chat/completions", {"json": {**CHAT, "model": "nope"}}),
    (404, "POST", "/tokenize", {"json": {"prompt": "x", "model": "nope"}}),
    (413, "POST", "/v1/completions", {"json": {"prompt": "x" * 3000}}),
    (415, "POST", "/detokenize", {"content": b"{}"}),
    (421, "GET", "/health", {"headers": {"Host": "evil.example"}}),
    (431, "GET", "/metrics", {"headers": {"A": "x" * 40_000}}),
]


@pytest.mark.parametrize(
    ("status", "method", "path", "options"), REFUSED, ids=lambda value: str(value)[:40]
)
def test_refusals_are_as_described(
    door: httpx.Client,
    description: dict[str, Any],
    status: int,
    method: str,
    path: str,
    options: dict[str, Any],
) -> None:
    answer = door.request(method, path, **options)
    assert answer.status_code == status
    check_answer(description, answer)


def test_full_and_dead_servers_are_as_described(description: dict[str, Any]) -> None:
    full = OverloadedError("full", retry_after_s=3)
    with scripted(Script(refuse=full), body_timeout_s=0.05) as server, server.client() as client:
        answer = client.post("/v1/completions", json=COMPLETION)
        assert answer.status_code == 429
        check_answer(description, answer)
        server.engine.unhealthy = EngineDeadError("it has failed")
        for path in ("/health", "/v1/models", "/v1/decoding"):
            answer = client.get(path)
            assert answer.status_code == 503
            check_answer(description, answer)
