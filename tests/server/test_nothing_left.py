"""Rules that leave no token: refused where that can be known, else the choice ends there.

The kind: the largest of a row is taken where the row may hold nothing at all. It is taken greedily,
with noise, behind each filter, for beams, for each draft token, for two distributions made one, and
for answers that are ranked; each of them has met an empty row here.
"""

import json
from typing import Any

import httpx
import pytest

from tests.server.conftest import MODEL
from tests.tiny import EOS, byte_tokenizer

A, B = byte_tokenizer().encode("ab")
BODY: dict[str, Any] = {"model": MODEL, "prompt": "b", "max_tokens": 20, "seed": 3}
STUCK: dict[str, Any] = {**BODY, "allowed_token_ids": [A], "bad_words": ["aaaa"]}
"""Three letters, and then there is none."""

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"allowed_token_ids": [A], "bad_words": ["a"]}, "bad_words"),
    ({"allowed_token_ids": [A, B, A], "bad_words": ["b", "a"]}, "bad_words"),
    ({"allowed_token_ids": [EOS], "min_tokens": 2}, "min_tokens"),
    ({"allowed_token_ids": [A], "stop_token_ids": [A], "min_tokens": 1}, "min_tokens"),
    (
        {"allowed_token_ids": [A, B, EOS], "stop_token_ids": [B], "bad_words": ["a"]}
        | {"min_tokens": 1},
        "min_tokens",
    ),
]
DRAWN: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1},
    {"temperature": 1, "top_k": 3},
    {"temperature": 1, "top_p": 0.5},
    {"temperature": 1, "min_p": 0.5},
    {"temperature": 1, "logprobs": 5},
    {"temperature": 0, "echo": True, "logprobs": 2},
    {"temperature": 1, "n": 3},
    {"repetition_penalty": 1.5, "presence_penalty": 1, "logit_bias": {str(A): 3}},
    {"kv_cache": {"h2o": {}}},
]
METHODS: list[dict[str, Any]] = [
    {"jacobi": {"window": 8, "adaptive": False}},
    {"ngram": {}},
    {"lookahead": {}},
    {"cfg": {"scale": 1.5, "negative_prompt": "no"}},
    {"cfg": {"scale": 1.5, "negative_prompt": "no"}, "jacobi": {"window": 8, "adaptive": False}},
    {"beam": {"width": 4}},
    {"best_of": {"n": 3}},
    {"best_of": {"n": 3, "rank": "vote"}},
    {"tot": {"generate": "sample", "generate_samples": 2, "breadth": 2, "depth": 1}},
]


@pytest.mark.parametrize("decoding", [{}, {"beam": {}}, {"best_of": {}}], ids=str)
@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=str)
def test_what_can_be_known_is_refused(
    http: httpx.Client, fields: dict[str, Any], param: str, decoding: dict[str, Any]
) -> None:
    answer = http.post("/v1/completions", json={**BODY, **fields, "decoding": decoding})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "no_allowed_token")


@pytest.mark.parametrize("fields", DRAWN + [{"decoding": method} for method in METHODS], ids=str)
def test_a_choice_ends_where_nothing_is_left(http: httpx.Client, fields: dict[str, Any]) -> None:
    answer = http.post("/v1/completions", json={**STUCK, **fields})
    assert answer.status_code == 200, answer.text
    choices = answer.json()["choices"]
    assert len(choices) == fields.get("n", 1)
    for choice in choices:
        assert choice["text"].removeprefix("b" if fields.get("echo") else "") == "aaa"
        assert choice["finish_reason"] == "stop"
        assert choice["stop_reason"] == "no_allowed_token"
        if fields.get("logprobs"):
            assert len(choice["logprobs"]["tokens"]) == 3 + bool(fields.get("echo"))


def test_a_stream_ends_there_too(http: httpx.Client) -> None:
    with http.stream("POST", "/v1/completions", json={**STUCK, "stream": True}) as answer:
        events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == "aaa"
    assert choices[-1]["finish_reason"] == "stop"
    assert choices[-1]["stop_reason"] == "no_allowed_token"


def test_nothing_is_left_behind_the_prompt_already(http: httpx.Client) -> None:
    """An empty answer, not a token that was forbidden; of several the one with tokens is better."""
    stuck = {**STUCK, "prompt": "aaa"}
    for decoding in ({}, *METHODS):
        answer = http.post("/v1/completions", json={**stuck, "decoding": decoding})
        assert answer.status_code == 200, answer.text
        (choice,) = answer.json()["choices"]
        assert choice["text"] == ""
        assert choice["finish_reason"] == "stop"


def test_a_beam_that_is_stuck_leaves_the_others(http: httpx.Client) -> None:
    fields = {**STUCK, "allowed_token_ids": [A, B], "bad_words": ["aa", "ab"], "n": 3}
    fields["logit_bias"] = {str(A): -4}
    answer = http.post("/v1/completions", json={**fields, "decoding": {"beam": {"width": 3}}})
    texts = [choice["text"] for choice in answer.json()["choices"]]
    assert all("aa" not in text and "ab" not in text for text in texts)
    assert any(text.endswith("a") for text in texts)
    assert any(len(text) == BODY["max_tokens"] for text in texts)
