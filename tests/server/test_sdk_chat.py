"""/v1/chat/completions through the official client, against a real process."""

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.server.conftest import MODEL
from tests.tiny import byte_tokenizer

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_completion_tokens": 12}
ASCII = [byte_tokenizer().encode(chr(c))[0] for c in range(32, 127)]
PLAIN: dict[str, Any] = {"allowed_token_ids": ASCII, "ignore_eos": True}


def test_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=HELLO, **GREEDY, extra_body=PLAIN)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content is not None
    assert len(choice.message.content) == 12
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls is None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens == len("<user>Hello\n<assistant>")


def test_chat_is_the_rendered_completion(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        messages=[{"role": "system", "content": "Be kind."}, *HELLO], **GREEDY, extra_body=PLAIN
    )
    text = client.completions.create(
        model=MODEL,
        prompt="<system>Be kind.\n<user>Hello\n<assistant>",
        temperature=0,
        max_tokens=12,
        extra_body=PLAIN,
    )
    assert chat.choices[0].message.content == text.choices[0].text


def test_stream_is_the_whole_answer_in_parts(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=HELLO, **GREEDY, extra_body=PLAIN)
    chunks = list(
        client.chat.completions.create(
            messages=HELLO,
            **GREEDY,
            extra_body=PLAIN,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    first, *middle, last, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert first.choices[0].delta.content == ""
    assert {chunk.choices[0].finish_reason for chunk in [first, *middle]} == {None}
    assert last.choices[0].finish_reason == "length"
    assert last.choices[0].delta.content is None
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert len(middle) > 6


def test_the_clients_stream_helper_understands_it(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {**GREEDY, "messages": HELLO, "extra_body": PLAIN}
    free = client.chat.completions.create(**call).choices[0].message.content
    assert free is not None
    stop = free[6:9]
    with client.chat.completions.stream(**call, stop=stop) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == free[: free.index(stop)]
    assert final.choices[0].finish_reason == "stop"


def test_n(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {"model": MODEL, "max_tokens": 10, "temperature": 1.3, "seed": 11}
    call |= {"messages": HELLO, "n": 3, "extra_body": PLAIN}
    whole = client.chat.completions.create(**call)
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 3
    streamed = dict.fromkeys(range(3), "")
    roles: list[int] = []
    ends: list[int] = []
    for chunk in client.chat.completions.create(stream=True, **call):
        (choice,) = chunk.choices
        if choice.delta.role:
            roles.append(choice.index)
        assert choice.index in roles
        assert choice.index not in ends
        streamed[choice.index] += choice.delta.content or ""
        if choice.finish_reason is not None:
            ends.append(choice.index)
    assert list(streamed.values()) == texts
    assert sorted(roles) == sorted(ends) == [0, 1, 2]


def test_the_rest_of_the_context_is_the_default(client: openai.OpenAI) -> None:
    """max_tokens left out: all that is left of 512 tokens."""
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "x" * 450}], extra_body=PLAIN
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == 512
    assert answer.choices[0].finish_reason == "length"


def test_developer_is_system_and_parts_are_lines(client: openai.OpenAI) -> None:
    parts: Any = [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]
    firsts: list[ChatCompletionMessageParam] = [
        {"role": "system", "content": "A\nB"},
        {"role": "developer", "content": "A\nB"},
        {"role": "developer", "content": parts},
    ]
    answers = [
        client.chat.completions.create(messages=[first, *HELLO], **GREEDY, extra_body=PLAIN)
        for first in firsts
    ]
    contents = {answer.choices[0].message.content for answer in answers}
    assert len(contents) == 1
    assert answers[0].usage is not None
    assert answers[0].usage.prompt_tokens == len("<system>A\nB\n<user>Hello\n<assistant>")


def test_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    """What the client got as a message, nulls included, is a message."""
    answer = client.chat.completions.create(messages=HELLO, **GREEDY, extra_body=PLAIN)
    back: Any = answer.choices[0].message.model_dump()
    assert back["tool_calls"] is None
    again = client.chat.completions.create(
        messages=[*HELLO, back, *HELLO], **GREEDY, extra_body=PLAIN
    )
    assert again.usage is not None
    assert again.usage.prompt_tokens == len("<user>Hello\n") * 2 + len("<assistant>\n") + 12 + 11


def test_continuing_the_final_message(client: openai.OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [
        *HELLO,
        {"role": "assistant", "content": "Well, I"},
    ]
    answer = client.chat.completions.create(
        messages=messages, **GREEDY, extra_body={**PLAIN, "continue_final_message": True}
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("<user>Hello\n<assistant>Well, I")
    without = client.chat.completions.create(
        messages=HELLO, **GREEDY, extra_body={**PLAIN, "add_generation_prompt": False}
    )
    assert without.usage is not None
    assert without.usage.prompt_tokens == len("<user>Hello\n")


def test_template_kwargs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=HELLO,
        **GREEDY,
        extra_body={**PLAIN, "chat_template_kwargs": {"enable_thinking": False}},
    )
    assert answer.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="enable_thinking"):
        client.chat.completions.create(
            messages=HELLO, **GREEDY, extra_body={"chat_template_kwargs": {"tokenize": True}}
        )


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_logprobs(client: openai.OpenAI, stream: bool) -> None:
    call: dict[str, Any] = {**GREEDY, "messages": HELLO, "logprobs": True, "top_logprobs": 3}
    whole = client.chat.completions.create(**call, extra_body=PLAIN).choices[0]
    assert whole.logprobs is not None
    content = whole.logprobs.content
    assert content is not None
    if stream:
        content = [
            entry
            for chunk in client.chat.completions.create(**call, extra_body=PLAIN, stream=True)
            if chunk.choices[0].logprobs is not None
            for entry in chunk.choices[0].logprobs.content or []
        ]
        assert content == whole.logprobs.content
    assert "".join(entry.token for entry in content) == whole.message.content
    for entry in content:
        assert entry.logprob <= 0
        assert entry.bytes is not None
        assert bytes(entry.bytes).decode() == entry.token
        assert len(entry.top_logprobs) == 3
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        for top in entry.top_logprobs:
            if top.token == entry.token:
                assert top.logprob == entry.logprob


def test_logprobs_without_alternatives(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=HELLO, logprobs=True, **GREEDY, extra_body=PLAIN
    )
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert {len(entry.top_logprobs) for entry in answer.choices[0].logprobs.content} == {0}


def test_token_ids_and_prompt_logprobs(client: openai.OpenAI) -> None:
    extra = {**PLAIN, "return_token_ids": True, "prompt_logprobs": 0}
    call: dict[str, Any] = {**GREEDY, "messages": HELLO}
    answer = client.chat.completions.create(**call, extra_body=extra).model_dump()
    prompt = byte_tokenizer().encode("<user>Hello\n<assistant>")
    assert answer["prompt_token_ids"] == prompt
    assert len(answer["prompt_logprobs"]) == len(prompt)
    assert [list(place) for place in answer["prompt_logprobs"][1:]] == [
        [str(t)] for t in prompt[1:]
    ]
    ids = answer["choices"][0]["token_ids"]
    assert byte_tokenizer().decode(ids) == answer["choices"][0]["message"]["content"]
    del extra["prompt_logprobs"]
    chunks = [
        chunk.model_dump()
        for chunk in client.chat.completions.create(**call, extra_body=extra, stream=True)
    ]
    assert chunks[0]["prompt_token_ids"] == prompt
    assert [t for c in chunks for t in c["choices"][0].get("token_ids") or []] == ids


def test_stop_never_shows_across_chunks(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {**GREEDY, "messages": HELLO, "max_completion_tokens": 40}
    free = client.chat.completions.create(**call, extra_body=PLAIN).choices[0].message.content
    assert free is not None
    stop = free[20:24]
    shown = ""
    for chunk in client.chat.completions.create(**call, extra_body=PLAIN, stop=stop, stream=True):
        shown += chunk.choices[0].delta.content or ""
        assert free.startswith(shown)
    assert shown == free[: free.index(stop)]


def test_empty_answer(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {**GREEDY, "messages": HELLO, "logit_bias": {"300": 100}}
    answer = client.chat.completions.create(**call)
    assert answer.choices[0].message.content == ""
    assert answer.choices[0].finish_reason == "stop"
    first, last = client.chat.completions.create(**call, stream=True)
    assert first.choices[0].delta.role == "assistant"
    assert last.choices[0].finish_reason == "stop"
