"""Errors that clients recognise by their words, where a status and a code do not tell enough.

The kind: a fallback or a retry that a client hangs on a phrase, a pattern or a code of OpenAI's.
litellm falls back to a model of a longer context on "this model's maximum context length is";
agents drop messages until the numbers after "maximum context length is", "you requested" and
"resulted in" fit; LangChain looks for the code; keys, models and limits have phrases as well.
Every way to exceed a context is here; it could also occur with each new bound on tokens, which is
why the error's own class writes the sentence.
"""

import re
from typing import Any

import httpx
import openai
import pytest

from penstock.errors import ContextLengthError, OverloadedError
from tests.server.conftest import MODEL
from tests.server.scripted import Script, scripted

COMPLETIONS = "/v1/completions"
CHATS = "/v1/chat/completions"
LIMIT = 512
LIMIT_SAID = re.compile(r"maximum context length is (\d+) tokens")
REQUESTED = re.compile(r"requested (\d+) tokens \((\d+) in the (\w+), (\d+) in the completion\)")
RESULTED = re.compile(r"your (\w+) resulted in (\d+) tokens")


def negative(size: int) -> dict[str, Any]:
    return {"cfg": {"scale": 2.0, "negative_prompt": "a" * size}}


TOO_LONG: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": (COMPLETIONS, {"prompt": "x" * LIMIT}),
    "prompt of ids": (COMPLETIONS, {"prompt": [65] * 600}),
    "second prompt": (COMPLETIONS, {"prompt": ["x", "x" * LIMIT]}),
    "characters": (COMPLETIONS, {"prompt": "x" * 100_000}),
    "max_tokens": (COMPLETIONS, {"prompt": "x" * 500, "max_tokens": 13}),
    "nothing but the prompt": (COMPLETIONS, {"prompt": "x" * 513, "max_tokens": 0, "echo": True}),
    "chat": (CHATS, {"messages": [{"role": "user", "content": "x" * LIMIT}]}),
    "chat characters": (CHATS, {"messages": [{"role": "user", "content": "x" * 100_000}]}),
    "max_completion_tokens": (
        CHATS,
        {"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 600},
    ),
    "stream": (CHATS, {"messages": [{"role": "user", "content": "x" * LIMIT}], "stream": True}),
    "negative prompt": (COMPLETIONS, {"prompt": "x", "decoding": negative(LIMIT)}),
    "negative characters": (COMPLETIONS, {"prompt": "x", "decoding": negative(5000)}),
    "negative prompt and max_tokens": (
        COMPLETIONS,
        {"prompt": "x", "max_tokens": 20, "decoding": negative(500)},
    ),
    "evicting": (COMPLETIONS, {"prompt": "x" * 500, "max_tokens": 13, "kv_cache": "h2o"}),
    "best_of": (COMPLETIONS, {"prompt": "x" * LIMIT, "best_of": 2}),
    "beam": (COMPLETIONS, {"prompt": "x" * 500, "max_tokens": 13, "decoding": "beam"}),
    "tokenize": ("/tokenize", {"prompt": "x" * 100_000}),
}


@pytest.mark.parametrize("case", TOO_LONG)
def test_a_context_that_is_exceeded(http: httpx.Client, case: str) -> None:
    route, fields = TOO_LONG[case]
    answer = http.post(route, json={"model": MODEL, **fields})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["type"] == "invalid_request_error"
    said = LIMIT_SAID.search(error["message"])
    assert said is not None, error["message"]
    assert error["message"].lower().startswith("this model's maximum context length is")
    assert int(said[1]) == LIMIT


def test_the_numbers_add_up(http: httpx.Client) -> None:
    def message(route: str, **fields: Any) -> str:
        return http.post(route, json=fields).json()["error"]["message"]

    found = REQUESTED.search(message(COMPLETIONS, prompt="x" * 500, max_tokens=13))
    assert found is not None
    assert found.groups() == ("513", "500", "prompt", "13")
    hello = [{"role": "user", "content": "x" * 400}]
    prompt = http.post("/tokenize", json={"messages": hello}).json()["count"]
    found = REQUESTED.search(message(CHATS, messages=hello, max_tokens=200))
    assert found is not None
    assert found.groups() == (str(prompt + 200), str(prompt), "messages", "200")
    found = RESULTED.search(message(COMPLETIONS, prompt="x" * 600))
    assert found is not None
    assert found.groups() == ("prompt", "600")


def test_the_class_says_it() -> None:
    error = ContextLengthError("Less, please.", limit_tokens=77)
    assert str(error) == "This model's maximum context length is 77 tokens. Less, please."
    assert error.code == "context_length_exceeded"


def test_a_model_that_is_not_served(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="The model `gpt-x` does not exist") as error:
        client.completions.create(model="gpt-x", prompt="x")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="The model `gpt-x` does not exist"):
        client.models.retrieve("gpt-x")


def test_a_wrong_key_and_none() -> None:
    with scripted(api_key=["right"]) as server:
        with (
            server.sdk() as sdk,
            pytest.raises(openai.AuthenticationError, match="Incorrect API key provided") as error,
        ):
            sdk.models.list()
        assert error.value.code == "invalid_api_key"
        with server.client() as client:
            body = client.get("/v1/models").json()["error"]
        assert body["message"].startswith("No API key provided")
        assert body["code"] == "invalid_api_key"


def test_too_many_requests() -> None:
    full = Script(refuse=OverloadedError("the queue is full", retry_after_s=7))
    with (
        scripted(full) as server,
        server.sdk() as sdk,
        pytest.raises(openai.RateLimitError) as error,
    ):
        sdk.completions.create(model="scripted", prompt="x")
    assert error.value.code == "rate_limit_exceeded"
    assert error.value.type == "rate_limit_error"
    assert error.value.response.headers["retry-after"] == "7"
