"""Thoughts over HTTP: read apart, streamed, counted, bounded, and before forms and calls."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from transformers import AddedToken

from tests.server.process import ServeProcess
from tests.tiny import EOS, byte_tokenizer, save_tiny, token_of

CHATS = "/v1/chat/completions"
QUESTION = {"role": "user", "content": "How many legs has a cat?"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"legs": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["legs"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "legs", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "count", "parameters": SCHEMA}}
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}<think>"
    "{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}"
    '<tool_call>{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}</tool_call>{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not "
    "enable_thinking %}<think>\n\n</think>\n\n{% else %}OPENING{% endif %}{% endif %}"
)
CONTROLS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
LIMIT = 40


@pytest.fixture(scope="module", params=["opened", "not opened"])
def thinker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[bool, ServeProcess, dict[str, int]]]:
    """A model that thinks: whether its template opens the thought, and its control tokens."""
    opened = request.param == "opened"
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("OPENING", "<think>\n" if opened else "")
    # As with Qwen3, they are added tokens and no special ones.
    tokenizer.add_tokens([AddedToken(each, special=False, normalized=False) for each in CONTROLS])
    folder = save_tiny(
        "llama",
        tmp_path_factory.mktemp("thinker") / "model",
        tokenizer=tokenizer,
        max_position_embeddings=1024,
    )
    log = tmp_path_factory.mktemp("log") / "server.log"
    arguments = [str(folder), "--threads", "1", "--kv-cache-memory", "8000000"]
    with ServeProcess(arguments, log) as running:
        ids = {each: token_of(tokenizer, each) for each in CONTROLS}
        yield opened, running, ids


@pytest.fixture
def http(thinker: tuple[bool, ServeProcess, dict[str, int]]) -> Iterator[httpx.Client]:
    with thinker[1].client() as client:
        yield client


def ask(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"messages": [QUESTION], "max_tokens": LIMIT, "seed": 2, "temperature": 1, **fields}
    answer = http.post(CHATS, json=body)
    assert answer.status_code == 200, answer.text
    assert "x-penstock-ignored" not in answer.headers
    return answer.json()


def thinks(thinker: tuple[bool, ServeProcess, dict[str, int]]) -> dict[str, Any]:
    """Fields with which the model thinks, and then ends its thought by itself."""
    opened, _, ids = thinker
    bias = {str(ids["</think>"]): 3.0}
    return {"logit_bias": bias if opened else {**bias, str(ids["<think>"]): 100}}


def test_a_budget_ends_a_thought(
    http: httpx.Client, thinker: tuple[bool, ServeProcess, dict[str, int]]
) -> None:
    opened, _, ids = thinker
    bias = {} if opened else {"logit_bias": {str(ids["<think>"]): 8}}
    names = ({"thinking": {"budget": 6}}, {"thinking_token_budget": 6}, {"thinking_budget": 6})
    ended = 0
    for seed, fields in enumerate(names):
        body = ask(http, **fields, **bias, return_token_ids=True, n=8, seed=seed)
        for choice in body["choices"]:
            tokens = choice["token_ids"]
            if opened or tokens[0] == ids["<think>"]:
                begun = tokens[: 7 + (not opened)]
                assert ids["</think>"] in begun or begun[-1] == EOS
                ended += ids["</think>"] in begun
    assert ended
    (choice,) = ask(http, thinking={"budget": 0}, **bias)["choices"]
    assert not choice["message"].get("reasoning_content")


def test_thoughts_are_read_apart_and_counted(
    http: httpx.Client, thinker: tuple[bool, ServeProcess, dict[str, int]]
) -> None:
    opened, _, ids = thinker
    fields = {**thinks(thinker), "thinking": {"budget": 12}, "return_token_ids": True}
    body = ask(http, **fields)
    (choice,) = body["choices"]
    message, tokens = choice["message"], choice["token_ids"]
    place = tokens.index(ids["</think>"])
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == place + 1
    assert message["reasoning"] == message["reasoning_content"]
    assert "</think>" not in message["reasoning_content"]
    (hidden,) = ask(http, **fields, include_reasoning=False)["choices"]
    assert "reasoning_content" not in hidden["message"]
    assert hidden["message"]["content"] == message["content"]
    (together,) = ask(http, **fields, separate_reasoning=False)["choices"]
    assert "</think>" in together["message"]["content"]
    assert ("<think>" in together["message"]["content"]) == (not opened)


def test_a_stream_has_thought_and_content_apart(
    http: httpx.Client, thinker: tuple[bool, ServeProcess, dict[str, int]]
) -> None:
    fields = {**thinks(thinker), "thinking": {"budget": 12}, "seed": 5}
    whole = ask(http, **fields)
    body = {"messages": [QUESTION], "max_tokens": LIMIT, "temperature": 1, "stream": True, **fields,
            "stream_options": {"include_usage": True}}  # fmt: skip
    answer = http.post(CHATS, json=body)
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:7] == "data: {"]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    for name in ("reasoning_content", "reasoning", "content"):
        streamed = "".join(delta.get(name) or "" for delta in deltas)
        assert streamed == whole["choices"][0]["message"][name]
    assert (
        chunks[-1]["usage"]["completion_tokens_details"]
        == (whole["usage"]["completion_tokens_details"])
    )


def test_forms_and_calls_follow_a_thought(
    http: httpx.Client, thinker: tuple[bool, ServeProcess, dict[str, int]]
) -> None:
    fields = {**thinks(thinker), "thinking": {"budget": 9}, "max_tokens": 120}
    for seed in range(4):
        for decoding in (None, "ngram", {"jacobi": {}}, {"cfg": {"scale": 1.5}}):
            more = {**fields, "seed": seed, "decoding": decoding}
            (choice,) = ask(http, response_format=FORM, **more)["choices"]
            jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
            assert "reasoning_content" in choice["message"]
            (choice,) = ask(
                http, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, **more
            )["choices"]
            (call,) = choice["message"]["tool_calls"]
            jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)
            assert choice["finish_reason"] == "tool_calls"


def test_a_model_that_is_told_not_to_think_does_not(
    http: httpx.Client, thinker: tuple[bool, ServeProcess, dict[str, int]]
) -> None:
    for off in (
        {"thinking": {"type": "disabled"}},
        {"think": False},
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ):
        body = ask(http, **off, response_format=FORM)
        (choice,) = body["choices"]
        jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
        assert "reasoning_content" not in choice["message"]
        details = body["usage"].get("completion_tokens_details", {})
        assert details.get("reasoning_tokens", 0) == 0


def test_thoughts_that_are_sent_back_reach_the_template(http: httpx.Client) -> None:
    said = {"role": "assistant", "content": "Four.", "reasoning_content": "Let me count them."}
    body = {"messages": [QUESTION, said, QUESTION]}
    tokens = http.post("/tokenize", json=body).json()["tokens"]
    prompt = http.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert "Let me count them.</think>Four." in prompt


def test_a_thought_is_dropped(
    http: httpx.Client, thinker: tuple[bool, ServeProcess, dict[str, int]]
) -> None:
    fields = {**thinks(thinker), "thinking": {"budget": 12}, "return_token_ids": True}
    kept = ask(http, **fields, kv_cache={"drop_thinking": False})
    assert kept["choices"] == ask(http, **fields)["choices"]
    dropped = ask(http, **fields, kv_cache={"drop_thinking": True})
    (one,), (other,) = kept["choices"], dropped["choices"]
    opened, _, ids = thinker
    end = one["token_ids"].index(ids["</think>"])
    assert other["token_ids"][: end + 2] == one["token_ids"][: end + 2]
    if opened:  # else a biased token is nearly all that comes
        assert other["token_ids"] != one["token_ids"]
    thought = end if opened else end - 1
    assert dropped["usage"]["penstock"]["evicted_tokens"] == thought
    assert (
        dropped["usage"]["completion_tokens_details"] == kept["usage"]["completion_tokens_details"]
    )
    policy = {"window": {"recent": 20, "sink": 4}, "drop_thinking": True}
    assert ask(http, **fields, kv_cache=policy)["usage"]["penstock"]["evicted_tokens"] > thought
    streamed = http.post(
        CHATS,
        json={"messages": [QUESTION], "max_tokens": LIMIT, "seed": 2, "temperature": 1, **fields,
              "kv_cache": {"drop_thinking": True}, "stream": True},
    ).text  # fmt: skip
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line[:7] == "data: {"]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    content = "".join(delta.get("content") or "" for delta in deltas)
    assert content == other["message"]["content"]
    best = ask(http, **fields, kv_cache={"drop_thinking": True}, decoding="best_of")
    assert best["usage"]["penstock"]["evicted_tokens"] > thought
    ask(http, think=False, kv_cache={"drop_thinking": True})  # its prompt has closed the thought


def test_a_model_without_thoughts_has_none_to_drop(server: ServeProcess) -> None:
    body = {"max_tokens": 3, "kv_cache": {"drop_thinking": True}}
    with server.client() as http:
        for path, prompt in (
            (CHATS, {"messages": [QUESTION]}),
            ("/v1/completions", {"prompt": "a"}),
        ):
            answer = http.post(path, json={**body, **prompt})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "kv_cache.drop_thinking"


def test_a_model_without_thoughts_refuses_a_budget(server: ServeProcess) -> None:
    with server.client() as http:
        body = {"messages": [QUESTION], "max_tokens": 3}
        answer = http.post(CHATS, json={**body, "thinking": {"budget": 5}})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "thinking.budget"
        answer = http.post(CHATS, json={**body, "thinking_token_budget": 5})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "thinking_token_budget"
        assert answer.json()["error"]["message"].startswith("thinking_token_budget bounds")
        for wrong in ({"budget": -1}, {"budget": "5"}, {"type": "sometimes"}, 5):
            answer = http.post(CHATS, json={**body, "thinking": wrong})
            assert answer.status_code == 400, wrong
        assert http.post(CHATS, json={**body, "thinking_token_budget": -1}).status_code == 200


def test_a_named_parser_reads_its_markup(tiny_llama: Path, tmp_path: Path) -> None:
    arguments = [str(tiny_llama), "--threads", "1", "--reasoning-parser", "mistral"]
    with ServeProcess(arguments, tmp_path / "log") as server, server.client() as http:
        body = {
            "messages": [QUESTION],
            "max_tokens": 60,
            "structured_outputs": {"choice": ["[THINK]Hm, four.[/THINK]Four legs."]},
        }
        message = http.post(CHATS, json=body).json()["choices"][0]["message"]
        assert message["reasoning_content"] == "Hm, four."
        assert message["content"] == "Four legs."
