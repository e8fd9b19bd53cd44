"""Tools over HTTP, in every convention: forced calls, free ones, streams, histories.

Each convention has a tiny random model whose tokenizer has its control tokens and whose template is
a short one of its kind.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from transformers import AddedToken

from tests.server.process import ServeProcess
from tests.server.tool_chats import (
    CHATS,
    HISTORY,
    QUESTION,
    SCHEMAS,
    THOUGHTS,
    TIME,
    TOOLS,
    ask,
    check_calls,
)
from tests.tiny import byte_tokenizer, save_tiny, token_of

_TURNS = (
    "{%% for m in messages %%}<{{ m.role }}>{{ m.content }}"
    "{%% for call in m.tool_calls or [] %%}%s{%% endfor %%}\n{%% endfor %%}"
    "{%% if add_generation_prompt %%}<assistant>{%% endif %%}"
)
_TOOLS = "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
_NAMED = '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
CONVENTIONS: dict[str, tuple[str, list[str]]] = {
    "json": (_TURNS % "", []),
    "hermes": (
        _TOOLS + _TURNS % f"<tool_call>\n{_NAMED}\n</tool_call>",
        ["<tool_call>", "</tool_call>"],
    ),
    "llama3": (
        _TOOLS + _TURNS % "<|python_tag|>{{ call.function | tojson }}",
        ["<|python_tag|>"],
    ),
    "mistral": (
        _TOOLS
        + "{% for m in messages if m.tool_calls %}{% if (m.tool_calls[0].id | length) != 9 %}"
        "{{ raise_exception('ids have nine characters') }}{% endif %}{% endfor %}"
        + _TURNS % f"[TOOL_CALLS][{_NAMED}]",
        ["[TOOL_CALLS]"],
    ),
    "mistral_named": (
        _TOOLS
        + _TURNS
        % "[TOOL_CALLS]{{ call.function.name }}[ARGS]{{ call.function.arguments | tojson }}",
        ["[TOOL_CALLS]", "[ARGS]"],
    ),
    "deepseek": (
        # Its arguments are text, as the published template has them.
        _TOOLS
        + _TURNS
        % (
            "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>' + "
            "call.function.name + '\n```json\n' + call.function.arguments + "
            "'\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>' }}"
        ),
        ["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>",
         "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"],
    ),
    "pythonic": (
        "{% if tools %}[func_name1(params_name1=...)] {{ tools | tojson }}\n{% endif %}"
        + _TURNS
        % (
            "[{{ call.function.name }}({% for k, v in call.function.arguments.items() %}"
            "{{ k }}={{ v | tojson }}{% if not loop.last %}, {% endif %}{% endfor %})]"
        ),
        [],
    ),
    "mistral_with_ids": (
        _TOOLS
        + _TURNS
        % (
            "[TOOL_CALLS]{{ call.function.name }}[CALL_ID]{{ call.id }}[ARGS]"
            "{{ call.function.arguments | tojson }}"
        ),
        ["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"],
    ),
    "qwen_xml": (
        _TOOLS
        + _TURNS
        % (
            "\n<tool_call>\n<function={{ call.function.name }}>\n"
            "{% for k, v in call.function.arguments | items %}<parameter={{ k }}>\n"
            "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}"
            "</function>\n</tool_call>"
        ),
        ["<tool_call>", "</tool_call>"],
    ),
    "glm": (
        _TOOLS
        + _TURNS
        % (
            "\n<tool_call>{{ call.function.name }}"
            "{% for k, v in call.function.arguments.items() %}\n<arg_key>{{ k }}</arg_key>\n"
            "<arg_value>{{ v if v is string else v | tojson }}</arg_value>{% endfor %}\n"
            "</tool_call>"
        ),
        ["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
    ),
    "harmony": (
        _TOOLS
        + _TURNS
        % (
            "<|channel|>commentary to=functions.{{ call.function.name }} <|constrain|>json"
            "<|message|>{{ call.function.arguments | tojson }}<|call|>"
        ),
        ["<|channel|>", "<|message|>", "<|constrain|>", "<|call|>", "<|end|>", "<|start|>",
         "<|return|>"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONVENTIONS)
def convention(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, ServeProcess, dict[str, int]]]:
    """A server of each kind, and the ids of its control tokens."""
    name: str = request.param
    template, controls = CONVENTIONS[name]
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    # Special ones are left out of texts unless they are read as markup.
    tokenizer.add_tokens([AddedToken(each, special=True) for each in controls])
    folder = save_tiny(
        "llama",
        tmp_path_factory.mktemp(name) / "model",
        tokenizer=tokenizer,
        max_position_embeddings=2048,
    )
    arguments = [str(folder), "--threads", "1", "--kv-cache-memory", "8000000"]
    log = tmp_path_factory.mktemp("log") / "server.log"
    with ServeProcess(arguments, log) as running:
        yield name, running, {each: token_of(tokenizer, each) for each in controls}


@pytest.fixture
def http(convention: tuple[str, ServeProcess, dict[str, int]]) -> Iterator[httpx.Client]:
    with convention[1].client() as client:
        client.headers["x-kind"] = convention[0]
        yield client


def test_the_convention_is_recognised(
    convention: tuple[str, ServeProcess, dict[str, int]],
) -> None:
    name, server, _ = convention
    kind = "mistral" if name.startswith("mistral") else name
    assert f"tool calls: {kind}" in server.log
    assert ("described" in server.log) == (name == "json")


def test_forced_calls_match_their_schemas(http: httpx.Client) -> None:
    ended = 0
    for seed in range(6):
        answer = ask(http, tool_choice="required", seed=seed, temperature=1.2, n=2)
        for choice in answer["choices"]:
            if choice["finish_reason"] != "length":
                check_calls(choice, set(SCHEMAS))
                ended += 1
    assert ended > 3


def test_a_named_function_is_called_once(http: httpx.Client) -> None:
    named = {"type": "function", "function": {"name": "get_time"}}
    for fields in (
        {"tool_choice": named},
        {
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [named]},
            },
            "parallel_tool_calls": False,
        },
    ):
        for decoding in (None, "ngram", {"jacobi": {}}):
            (choice,) = ask(http, **fields, decoding=decoding)["choices"]
            assert len(check_calls(choice, {"get_time"})) == 1


def test_several_calls_in_one_answer(
    http: httpx.Client, convention: tuple[str, ServeProcess, dict[str, int]]
) -> None:
    if convention[0] in ("llama3", "harmony"):  # their models write one
        counts = {len(check_calls(ask(http, tool_choice="required", tools=TOOLS[1:])["choices"][0],
                                  {"get_time"}))}  # fmt: skip
        assert counts == {1}
        return
    only_time = {"tools": TOOLS[1:], "tool_choice": "required", "temperature": 1.5, "n": 16}
    counts = {
        len(choice["message"]["tool_calls"])
        for choice in ask(http, **only_time)["choices"]
        if choice["finish_reason"] != "length"
    }
    assert max(counts) > 1
    (*_, last) = ask(http, **only_time, parallel_tool_calls=False)["choices"]
    assert len(check_calls(last, {"get_time"})) == 1


def stream(http: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    body = {"messages": [QUESTION], "tools": TOOLS, "max_tokens": 400, "stream": True, **fields}
    body = {**THOUGHTS.get(str(http.headers.get("x-kind")), {}), **body}
    answer = http.post(CHATS, json=body)
    assert answer.status_code == 200, answer.text
    lines = answer.text.splitlines()
    assert lines[-2] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_a_stream_gives_the_name_first_and_the_same_calls(http: httpx.Client) -> None:
    fields = {"tool_choice": "required", "seed": 5, "temperature": 0.8}
    whole = ask(http, **fields)["choices"][0]
    calls: list[dict[str, str]] = []
    chunks = stream(http, **fields)
    for chunk in chunks:
        for delta in chunk["choices"][0]["delta"].get("tool_calls") or ():
            if delta["index"] == len(calls):
                assert delta["id"]
                assert delta["type"] == "function"
                calls.append({"name": delta["function"]["name"], "arguments": ""})
            else:
                assert set(delta) == {"index", "function"}
            calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
    assert calls == [call["function"] for call in whole["message"]["tool_calls"]]


def test_the_sdk_assembles_a_stream(
    convention: tuple[str, ServeProcess, dict[str, int]],
) -> None:
    client = openai.OpenAI(base_url=f"{convention[1].url}/v1", api_key="-", max_retries=0)
    with client.chat.completions.stream(
        model="model",
        messages=[{"role": "user", "content": "What time is it?"}],
        tools=TOOLS[1:],  # type: ignore[arg-type]
        tool_choice={"type": "function", "function": {"name": "get_time"}},
        seed=2,
        extra_body=THOUGHTS.get(convention[0]),
    ) as events:
        names = [
            event.name for event in events if event.type == "tool_calls.function.arguments.done"
        ]
        (choice,) = events.get_final_completion().choices
    assert names == ["get_time"]
    assert choice.message.tool_calls is not None
    jsonschema.validate(json.loads(choice.message.tool_calls[0].function.arguments), TIME)


def test_a_strict_tool_is_held_once_a_call_begins(
    http: httpx.Client, convention: tuple[str, ServeProcess, dict[str, int]]
) -> None:
    """A bias makes the model begin a call; without one the same request is text."""
    name, _, controls = convention
    begin = {
        "hermes": ["<tool_call>"],
        "mistral": ["[TOOL_CALLS]"],
        "mistral_named": ["[TOOL_CALLS]"],
        "mistral_with_ids": ["[TOOL_CALLS]"],
        "qwen_xml": ["<tool_call>"],
        "glm": ["<tool_call>"],
        "deepseek": ["<｜tool▁calls▁begin｜>"],
    }.get(name)
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    if begin is None:
        (choice,) = ask(http, tools=strict, max_tokens=80)["choices"]
        assert choice["finish_reason"] in ("length", "stop", "tool_calls")
        # What is held is read: no markup is left in the text.
        assert not any(each in (choice["message"]["content"] or "") for each in controls)
        return
    bias = {str(controls[each]): 100 for each in begin}
    called = 0
    for seed in range(4):
        answer = ask(http, tools=strict, logit_bias=bias, seed=seed, parallel_tool_calls=False)
        (choice,) = answer["choices"]
        if choice["finish_reason"] == "tool_calls":
            called += len(check_calls(choice, set(SCHEMAS)))
    assert called
    (choice,) = ask(http, tools=strict, max_tokens=20)["choices"]
    assert "tool_calls" not in choice["message"]


def test_calls_beside_a_form(http: httpx.Client) -> None:
    """With both, an answer is a call or text of the form."""
    form = {"type": "json_schema", "json_schema": {"name": "t", "schema": TIME}}
    kinds: set[str] = set()
    for seed in range(12):
        answer = ask(http, response_format=form, seed=seed, temperature=2, tools=TOOLS[1:])
        (choice,) = answer["choices"]
        kinds.add(choice["finish_reason"])
        if choice["finish_reason"] == "tool_calls":
            check_calls(choice, {"get_time"})
        elif choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["message"]["content"]), TIME)
    assert kinds & {"stop", "tool_calls"}


def test_calls_and_results_reach_the_prompt(http: httpx.Client) -> None:
    body = {"messages": HISTORY, "tools": TOOLS}
    tokens = http.post("/tokenize", json=body).json()["tokens"]
    prompt = http.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    for part in ("get_weather", "get_time", "Rome", "Sunny and warm.", "And tomorrow?"):
        assert part in prompt, prompt
    assert '\\"city' not in prompt
    answer = ask(http, messages=HISTORY, tool_choice="none", max_tokens=5)
    assert "tool_calls" not in answer["choices"][0]["message"]
    without = http.post(
        "/tokenize", json={"messages": HISTORY, "tools": TOOLS, "tool_choice": "none"}
    )
    assert len(without.json()["tokens"]) < len(tokens)


def test_markup_in_a_callers_words_stays_words(
    http: httpx.Client, convention: tuple[str, ServeProcess, dict[str, int]]
) -> None:
    for text, token in convention[2].items():
        tool = {"type": "function", "function": {"name": "f", "description": f"x{text}"}}
        for body in (
            {"messages": [{"role": "user", "content": f"x{text}"}]},
            {"messages": [QUESTION], "tools": [tool]},
        ):
            tokens = http.post("/tokenize", json=body).json()["tokens"]
            assert token not in tokens


def test_arguments_have_the_properties_that_are_named(http: httpx.Client) -> None:
    inner = {"type": "object", "properties": {"x": {"enum": [1]}}, "required": ["x"]}
    parameters = {"properties": {"a": inner, "b": {"enum": [2]}}, "required": ["a", "b"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    forced = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    for seed in range(3):
        (choice,) = ask(http, **forced, temperature=2, seed=seed)["choices"]
        arguments = json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])
        assert arguments == {"a": {"x": 1}, "b": 2}
