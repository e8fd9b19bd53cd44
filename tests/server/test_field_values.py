"""Values as clients write them: what means "unset", whole numbers as floats, and our own words.

The kind: a value that says "nothing" in one of the servers that a client was written for (-1, "",
[], false, 0), or a number that JSON does not tell from another, was taken literally or refused.
Every field and every method's parameters are looked at, through the tables that tests share.
"""

import json
import re
from typing import Any, get_args

import httpx
import orjson
import pytest
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ErrorType

from penstock.decoding.base import DecodingMethod
from penstock.kvcache.base import CachePolicy
from penstock.kvcache.h2o import H2OParameters
from penstock.registry import Registry
from penstock.server.protocol.chat_body import ChatBody
from penstock.server.protocol.completion_body import CompletionBody
from penstock.server.protocol.parse import parse_body
from penstock.validation import reason
from tests.server.bounds import PATHS, TABLES, VALID, body, cases

BODIES = {"completion": CompletionBody, "chat": ChatBody}
SAMPLE: dict[str, Any] = {"temperature": 1, "max_tokens": 40, "ignore_eos": True}
CONTEXT = 512
JSON = "application/json"
TREE = {"tot": {"generate": "sample", "generate_samples": 2, "breadth": 1, "depth": 2}}


def ask(http: httpx.Client, kind: str = "completion", **fields: Any) -> dict[str, Any]:
    answer = http.post(PATHS[kind], json={**VALID[kind], **fields})
    assert answer.status_code == 200, answer.text
    assert "x-penstock-ignored" not in answer.headers
    return answer.json()


def texts(answer: dict[str, Any]) -> list[str]:
    return [
        choice["text"] if "text" in choice else choice["message"]["content"]
        for choice in answer["choices"]
    ]


@pytest.mark.parametrize("kind", ["completion", "chat"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"n": 2}, {"decoding": "jacobi"}, {"decoding": {"best_of": {"n": 2}}}, {"decoding": TREE}],
    ids=["plain", "n", "jacobi", "best_of", "tot"],
)
def test_seed_minus_one_is_no_seed(http: httpx.Client, kind: str, fields: dict[str, Any]) -> None:
    """40 random bytes are never twice the same; with a seed they are."""
    free = [texts(ask(http, kind, **SAMPLE, **fields, seed=-1)) for _ in range(2)]
    fixed = [texts(ask(http, kind, **SAMPLE, **fields, seed=7)) for _ in range(2)]
    assert free[0] != free[1]
    assert fixed[0] == fixed[1]


UNSET: list[tuple[str, Any]] = [
    *[("top_k", value) for value in (-1, 0)],
    *[("stop", value) for value in ("", [], [""], None)],
    *[("logit_bias", value) for value in ({}, [])],
    *[("stream_options", value) for value in ({}, {"include_usage": False})],
    *[("tool_choice", value) for value in ("none", "auto")],
    *[("best_of", value) for value in (1, 1.0, None)],
    *[("top_logprobs", value) for value in (0, None)],
    ("logprobs", False),
    ("min_p", 0),
    ("top_p", 1),
    ("repetition_penalty", 1),
    ("min_tokens", 0.0),
    ("n", 1.0),
    ("model", ""),
    ("user", ""),
    ("tools", []),
    ("response_format", {"type": "text"}),
    ("decoding", {}),
    ("decoding", []),
    ("stop_token_ids", []),
    ("bad_words", []),
    ("priority", 0.0),
    ("typical_p", 1.0),
    ("mirostat", 0),
    ("repeat_penalty", 1.0),
    ("grammar", ""),
]


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_values_that_ask_for_nothing_change_nothing(http: httpx.Client, kind: str) -> None:
    fixed: dict[str, Any] = {"temperature": 1, "seed": 3, "max_tokens": 8}
    plain = texts(ask(http, kind, **fixed))
    for name, value in UNSET:
        assert texts(ask(http, kind, **fixed, **{name: value})) == plain, (name, value)


@pytest.mark.parametrize("name", ["max_tokens", "n_predict", "max_completion_tokens"])
def test_max_tokens_minus_one_is_all_that_is_left(http: httpx.Client, name: str) -> None:
    request = {"prompt": "x" * 500, "ignore_eos": True, name: -1}
    answer = http.post("/v1/completions", json=request).json()
    assert answer["usage"]["completion_tokens"] == CONTEXT - 500
    assert answer["choices"][0]["finish_reason"] == "length"


def test_top_p_zero_is_greedy(http: httpx.Client) -> None:
    greedy = texts(ask(http, max_tokens=24, temperature=0, ignore_eos=True))
    assert texts(ask(http, max_tokens=24, temperature=1, top_p=0, ignore_eos=True)) == greedy
    drafted = ask(http, max_tokens=24, temperature=1, top_p=0, ignore_eos=True, decoding="jacobi")
    assert texts(drafted) == greedy


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_truncation_to_the_context_leaves_room_for_the_answer(
    http: httpx.Client, kind: str
) -> None:
    long = "".join(chr(97 + i * i % 26) for i in range(9000))
    prompt = {"prompt": long} if kind == "completion" else {"messages": [_user(long)]}
    fields = {**prompt, "truncate_prompt_tokens": -1, "max_tokens": 4, "ignore_eos": True}
    answer = http.post(PATHS[kind], json={**fields, "return_token_ids": True}).json()
    assert answer["usage"]["prompt_tokens"] == CONTEXT - 4
    right = http.post(PATHS[kind], json={**fields, "truncation_side": "right"}).json()
    assert right["usage"]["prompt_tokens"] == CONTEXT - 4
    assert texts(right) != texts(answer)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def as_floats(value: Any) -> Any:
    """The value with every integer in it written 5.0."""
    if isinstance(value, dict):
        return {name: as_floats(item) for name, item in value.items()}
    if isinstance(value, list):
        return [as_floats(item) for item in value]
    return float(value) if type(value) is int and abs(value) <= 2**53 else value


def test_every_integer_of_a_body_may_be_written_as_a_float() -> None:
    floats = 0
    for kind, bound, value in cases("inside"):
        given = body(kind, bound, value)
        written = as_floats(given)
        floats += json.dumps(written[bound.name]) != json.dumps(given[bound.name])
        parsed, _ = parse_body(BODIES[kind], orjson.dumps(given))
        assert parse_body(BODIES[kind], orjson.dumps(written))[0] == parsed, bound.name
    assert floats > 60


REGISTRIES: list[Registry[Any]] = [
    Registry[DecodingMethod[Any]].from_entry_points("decoding", "penstock.decoding"),
    Registry[CachePolicy[Any]].from_entry_points("kv_cache", "penstock.kv_cache"),
]


def test_every_integer_parameter_of_a_method_may_be_written_as_a_float() -> None:
    """Those with a default; shares, where 1.0 is not 1, keep their meaning."""
    tried = 0
    for registry in REGISTRIES:
        for name, method in registry.methods.items():
            schema = method.parameters.model_json_schema()
            for parameter, details in schema.get("properties", {}).items():
                value = details.get("default")
                if type(value) is not int or value == 1:
                    continue
                spec = {name: {parameter: value}}
                assert registry.resolve(as_floats(spec)) == registry.resolve(spec), spec
                tried += 1
    assert tried > 15
    nested = [{"tot": {"budget": {"tokens": number}}} for number in (500, 500.0)]
    assert REGISTRIES[0].resolve(nested[0]) == REGISTRIES[0].resolve(nested[1])
    for written, meant in ((1.0, float), (100.0, int)):
        parameters = REGISTRIES[1].resolve({"h2o": {"heavy": written}})[0].parameters
        assert isinstance(parameters, H2OParameters)
        assert type(parameters.heavy) is meant


def test_whole_floats_over_http(http: httpx.Client) -> None:
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    plain = ask(http, prompt=[65, 66, 67], **fields)
    with_floats: dict[str, Any] = {**fields, "max_tokens": 6.0}
    floats = ask(
        http,
        "completion",
        **with_floats,
        prompt=[65.0, 66.0, 67.0],
        n=1.0,
        logprobs=2.0,
        stop_token_ids=[9.0],
        decoding={"jacobi": {"window": 4.0}},
        kv_cache={"window": {"recent": 100.0}},
    )
    assert texts(floats) == texts(plain)
    several = http.post("/v1/completions", json={**fields, "prompt": [[65.0], [66.0, 67.0]]})
    assert several.status_code == 200


LIBRARY = re.compile(
    r"Input should|valid (string|integer|number|list|dict)|constrained|pydantic|unable to|Extra in"
    r"|validation error|discriminator|tagged-union|function-|Field required|orjson|Expecting|_type"
)
STRANGE: list[dict[str, Any]] = [
    {"stop": {"a": 1}},
    {"decoding": {"a": {"b": [{}] * 5000}}},
    {"decoding": 5},
    {"decoding": {"jacobi": 5}},
    {"decoding": {"jacobi": {"window": "4"}}},
    {"decoding": {"jacobi": {"init": []}}},
    {"decoding": {"cfg": {"negative_messages": [{"role": "x", "content": 5}]}}},
    {"decoding": {"cfg": {"negative_messages": {}}}},
    {"decoding": {"beam": {"early_stop": "maybe"}}},
    {"decoding": {"beam": {"budget": []}}},
    {"decoding": {"tot": {"prompts": {"propose": 5}}}},
    {"kv_cache": {"h2o": {"heavy": "all"}}},
    {"kv_cache": {"h2o": {"score": "best"}}},
    {"logit_bias": {"5": []}},
    {"stream_options": {"include_usage": "yes"}},
]


def test_no_message_speaks_a_librarys_language(http: httpx.Client) -> None:
    bodies = [(kind, body(kind, bound, value)) for kind, bound, value in cases("outside")]
    bodies += [(kind, {**VALID[kind], **fields}) for kind in VALID for fields in STRANGE]
    for kind, request in bodies:
        answer = http.post(PATHS[kind], json=request)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert not LIBRARY.search(error["message"]), error
        assert not LIBRARY.search(error["param"]), error
    broken = [b"{", b"[1", b"\xff", b'{"prompt": "\\ud800"}', b"nul"]
    for raw in broken:
        answer = http.post("/v1/completions", content=raw, headers={"Content-Type": JSON})
        assert answer.status_code == 400
        assert not LIBRARY.search(answer.json()["error"]["message"]), answer.text


@pytest.mark.parametrize("kind", [k for k in get_args(ErrorType) if k != "value_error"])
def test_every_kind_of_mistake_has_words_of_ours(kind: str) -> None:
    context: dict[str, Any] = dict.fromkeys(("expected", "pattern", "expected_schemes"), "x")
    context |= dict.fromkeys(("gt", "ge", "lt", "le", "max_length", "min_length"), 3)
    details = ErrorDetails(
        type=kind, loc=("field",), msg="Input should be a valid thing", input=[1], ctx=context
    )
    words = reason(details)
    assert words.startswith(("is ", "has "))
    assert not LIBRARY.search(words)


def test_a_table_has_every_field_that_is_an_integer() -> None:
    """What the sweep above relies on: no integer field is missing from the bounds."""
    for kind, model in BODIES.items():
        listed = {bound.name for bound in TABLES[kind]}
        for name, field in model.model_json_schema()["properties"].items():
            if '"integer"' in json.dumps(field):
                assert name in listed
