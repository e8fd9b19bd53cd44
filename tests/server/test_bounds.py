"""Both ends of every bound, from one table."""

import json
from typing import Any

import httpx
import orjson
import pytest

from penstock.errors import RequestError
from penstock.server.protocol.chat_body import ChatBody
from penstock.server.protocol.completion_body import CompletionBody
from penstock.server.protocol.field_table import FIELDS
from penstock.server.protocol.generation import GenerationBody
from penstock.server.protocol.parse import parse_body
from tests.server.bounds import PATHS, TABLES, VALID, Bound, body, case_id, cases

BODIES: dict[str, type[GenerationBody]] = {"completion": CompletionBody, "chat": ChatBody}


@pytest.mark.parametrize(("kind", "bound", "value"), cases("inside"), ids=case_id)
def test_bound_itself_is_accepted(kind: str, bound: Bound, value: Any) -> None:
    parse_body(BODIES[kind], orjson.dumps(body(kind, bound, value)))


@pytest.mark.parametrize(("kind", "bound", "value"), cases("outside"), ids=case_id)
def test_beyond_the_bound_is_refused(kind: str, bound: Bound, value: Any) -> None:
    # Python's own JSON: integers beyond 64 bits are numbers, too.
    raw = json.dumps(body(kind, bound, value)).encode()
    with pytest.raises(RequestError) as refusal:
        parse_body(BODIES[kind], raw)
    assert refusal.value.param is not None
    assert refusal.value.param.split(".")[0] == bound.name
    assert bound.name in refusal.value.message


def test_every_bounded_field_is_in_the_table() -> None:
    shared = {"stream", "stream_options", "ignore_eos", "return_token_ids", "echo"}
    shared |= {"return_tokens_as_token_ids", "truncation_side", "add_special_tokens"}
    shared |= {"skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output"}
    unbounded = {
        "chat": shared
        | {"logprobs", "add_generation_prompt", "continue_final_message", "parallel_tool_calls"}
        | {"include_reasoning", "separate_reasoning"},
        "completion": shared | {"suffix"},  # a text, bounded as the prompt is
    }
    aliases = {name for name, field in FIELDS.items() if field.kind == "alias"}
    for kind, model in BODIES.items():
        listed = {bound.name for bound in TABLES[kind]}
        assert set(model.model_fields) == (listed - aliases) | unbounded[kind]
        assert aliases - listed == {"no_stop_trim"}  # of a field that is not bounded


def test_server_refuses_beyond_the_bounds_and_goes_on(http: httpx.Client) -> None:
    for kind, bound, value in cases("outside"):
        answer = http.post(PATHS[kind], json=body(kind, bound, value))
        assert answer.status_code == 400, (kind, bound.name, value)
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert error["param"].split(".")[0] == bound.name
    assert http.post(PATHS["chat"], json=VALID["chat"]).status_code == 200


WRONG_TYPES = [
    ("n", "5"),
    ("n", True),
    ("n", 1.5),
    ("n", [1]),
    ("max_tokens", "16"),
    ("max_tokens", 1.5),
    ("max_tokens", False),
    ("temperature", "0.5"),
    ("temperature", True),
    ("temperature", {}),
    ("top_p", [0.5]),
    ("seed", "7"),
    ("seed", 1.5),
    ("seed", True),
    ("stop_token_ids", [1.5]),
    ("skip_special_tokens", 0),
    ("include_stop_str_in_output", "yes"),
    ("truncation_side", "middle"),
    ("truncate_prompt_tokens", True),
    ("n_predict", "5"),
    ("stop", 5),
    ("stop", [5]),
    ("stop", {"a": "b"}),
    ("stream", "true"),
    ("stream", 1),
    ("stream_options", True),
    ("stream_options", []),
    ("logit_bias", [1]),
    ("logit_bias", {"5": "1"}),
    ("logit_bias", {"five": 1}),
    ("logit_bias", {"-1": 1}),
    ("stop_token_ids", "5"),
    ("stop_token_ids", ["5"]),
    ("stop_token_ids", [True]),
    ("bad_words", "word"),
    ("ignore_eos", "no"),
    ("ignore_eos", 0),
    ("user", 5),
    ("model", 5),
    ("model", ["tiny"]),
    ("priority", "high"),
    ("cache_salt", 5),
    ("decoding", 5),
    ("decoding", [5]),
    ("kv_cache", 5),
    ("return_token_ids", 1),
]


@pytest.mark.parametrize("kind", ["completion", "chat"])
@pytest.mark.parametrize(("name", "value"), WRONG_TYPES, ids=case_id)
def test_wrong_type_is_refused(http: httpx.Client, kind: str, name: str, value: Any) -> None:
    answer = http.post(PATHS[kind], json={**VALID[kind], name: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].split(".")[0] == name


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_null_counts_as_absent(http: httpx.Client, kind: str) -> None:
    optional = FIELDS.keys() - VALID[kind].keys()
    answer = http.post(PATHS[kind], json={**VALID[kind], **dict.fromkeys(optional)})
    assert answer.status_code == 200
    assert "x-penstock-ignored" not in answer.headers
