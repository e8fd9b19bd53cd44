"""Logprobs of /v1/completions through the official client, against a real process."""

import math
from typing import Any

import openai
import pytest

from tests.server.test_sdk_completions import ASCII, GREEDY, PLAIN
from tests.tiny import byte_tokenizer


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt="Hello", logprobs=3, **GREEDY, extra_body=PLAIN)
    choice = answer.choices[0]
    assert choice.logprobs is not None
    lists = choice.logprobs
    assert lists.tokens == list(choice.text)
    assert lists.text_offset == list(range(12))
    assert lists.token_logprobs is not None
    assert lists.top_logprobs is not None
    for token, logprob, top in zip(
        lists.tokens, lists.token_logprobs, lists.top_logprobs, strict=True
    ):
        assert logprob <= 0
        assert top[token] == logprob
        assert 3 <= len(top) <= 4
        assert sum(map(math.exp, top.values())) <= 1 + 1e-6


def test_logprobs_are_those_of_the_raw_model(client: openai.OpenAI) -> None:
    """Temperature, bias and penalties change what is chosen, not what is reported."""
    call: dict[str, Any] = {**GREEDY, "prompt": "Hello", "logprobs": 5}
    plain = client.completions.create(**call, extra_body=PLAIN)
    call |= {"temperature": 0.3, "logit_bias": {str(ASCII[5]): -50}, "seed": 1}
    changed = client.completions.create(**call, extra_body={**PLAIN, "top_k": 2})
    first, second = plain.choices[0].logprobs, changed.choices[0].logprobs
    assert first is not None
    assert second is not None
    assert first.top_logprobs is not None
    assert second.top_logprobs is not None
    both = first.top_logprobs[0].keys() & second.top_logprobs[0].keys()
    assert len(both) >= 5
    for token in both:
        assert first.top_logprobs[0][token] == pytest.approx(second.top_logprobs[0][token])


@pytest.mark.parametrize("max_tokens", [0, 4])
def test_echo_with_logprobs_scores_the_prompt(client: openai.OpenAI, max_tokens: int) -> None:
    call: dict[str, Any] = {**GREEDY, "max_tokens": max_tokens, "extra_body": PLAIN}
    answer = client.completions.create(prompt="Hello", echo=True, logprobs=2, **call)
    choice = answer.choices[0]
    assert choice.logprobs is not None
    lists = choice.logprobs
    assert len(choice.text) == 5 + max_tokens
    assert lists.tokens == list(choice.text)
    assert lists.text_offset == list(range(5 + max_tokens))
    assert lists.token_logprobs is not None
    assert lists.top_logprobs is not None
    assert lists.token_logprobs[0] is None
    assert lists.top_logprobs[0] is None
    assert all(value <= 0 for value in lists.token_logprobs[1:])
    # The same probabilities as when the text is generated instead of given.
    call = {**GREEDY, "max_tokens": 1}
    prefix = client.completions.create(prompt="Hell", logprobs=20, **call)
    first = prefix.choices[0].logprobs
    assert first is not None
    assert first.top_logprobs is not None
    if "o" in first.top_logprobs[0]:
        assert first.top_logprobs[0]["o"] == pytest.approx(lists.token_logprobs[4], abs=1e-4)


def test_streamed_logprobs_are_the_whole_ones(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {**GREEDY, "prompt": "Hello", "echo": True, "logprobs": 2}
    whole = client.completions.create(**call, extra_body=PLAIN).choices[0].logprobs
    assert whole is not None
    parts = [
        chunk.choices[0].logprobs
        for chunk in client.completions.create(**call, extra_body=PLAIN, stream=True)
    ]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [value for part in parts if part is not None for value in getattr(part, name)]
        assert joined == getattr(whole, name)


def test_prompt_logprobs_in_vllms_form(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt="Hello", **GREEDY, extra_body={"prompt_logprobs": 2})
    places = answer.choices[0].model_dump()["prompt_logprobs"]
    assert places[0] is None
    for token, place in zip(byte_tokenizer().encode("Hello")[1:], places[1:], strict=True):
        entry = place[str(token)]
        assert entry["logprob"] <= 0
        assert 2 <= len(place) <= 3
        assert [e["rank"] for e in place.values()].count(entry["rank"]) == 1
    assert places[1][str(byte_tokenizer().encode("e")[0])]["decoded_token"] == "e"
