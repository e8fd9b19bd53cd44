"""/v1/completions through the official client, against a real process."""

import time
from typing import Any

import httpx
import openai
import pytest

from tests.server.conftest import MODEL
from tests.server.process import ServeProcess
from tests.tiny import byte_tokenizer

GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": 12}
# The tiny model says any bytes; these are the tokens of printable ASCII.
ASCII = [byte_tokenizer().encode(chr(c))[0] for c in range(32, 127)]
PLAIN: dict[str, Any] = {"allowed_token_ids": ASCII, "ignore_eos": True}


def test_whole_answer(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt="Hello", user="someone", **GREEDY, extra_body=PLAIN)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.model == MODEL
    assert abs(answer.created - time.time()) < 600
    (choice,) = answer.choices
    assert len(choice.text) == 12
    assert choice.text.isascii()
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == 17
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.model_dump()["penstock"]["steps"] == 12


def test_sixteen_tokens_are_the_default(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="x", extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_stream_is_the_whole_answer_in_parts(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt="Hello", **GREEDY, extra_body=PLAIN)
    chunks = list(
        client.completions.create(prompt="Hello", **GREEDY, extra_body=PLAIN, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert {chunk.choices[0].finish_reason for chunk in chunks[:-1]} == {None}
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 6
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            prompt="Hello", **GREEDY, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_batches_and_n(client: openai.OpenAI, stream: bool) -> None:
    """Choice number = prompt number * n + number within the prompt, whatever the prompts' form."""
    tokenizer = byte_tokenizer()
    texts = ["One", "Two", "Three"]
    ids = [tokenizer.encode(text) for text in texts]
    want = [
        client.completions.create(prompt=text, n=2, **GREEDY, extra_body=PLAIN).choices[0].text
        for text in texts
    ]
    for prompt in (texts, ids):
        call: dict[str, Any] = {"prompt": prompt, "n": 2, "extra_body": PLAIN, **GREEDY}
        texts_of = dict.fromkeys(range(6), "")
        ends: dict[int, str | None] = {}
        if stream:
            for chunk in client.completions.create(stream=True, **call):
                for choice in chunk.choices:
                    assert choice.index not in ends
                    texts_of[choice.index] += choice.text
                    if choice.finish_reason:
                        ends[choice.index] = choice.finish_reason
        else:
            answer = client.completions.create(**call)
            assert [choice.index for choice in answer.choices] == list(range(6))
            texts_of = {choice.index: choice.text for choice in answer.choices}
            ends = {choice.index: choice.finish_reason for choice in answer.choices}
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == 3 + 3 + 5
            assert answer.usage.completion_tokens == 6 * 12
        assert [texts_of[i] for i in range(6)] == [w for w in want for _ in range(2)]
        assert set(ends.values()) == {"length"}


def test_ids_as_prompt(client: openai.OpenAI) -> None:
    ids = byte_tokenizer().encode("Hello")
    by_ids = client.completions.create(prompt=ids, **GREEDY, extra_body=PLAIN)
    by_text = client.completions.create(prompt="Hello", **GREEDY, extra_body=PLAIN)
    assert by_ids.choices[0].text == by_text.choices[0].text


def test_samples_differ_and_seeds_agree(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {"model": MODEL, "prompt": "x", "max_tokens": 20, "temperature": 1.5}
    one, two, other = (
        client.completions.create(n=2, seed=seed, **call, extra_body=PLAIN) for seed in (7, 7, 8)
    )
    assert [c.text for c in one.choices] == [c.text for c in two.choices]
    assert one.choices[0].text != one.choices[1].text
    assert one.choices[0].text != other.choices[0].text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_stop_strings_never_show(client: openai.OpenAI, width: int, stream: bool) -> None:
    call: dict[str, Any] = {**GREEDY, "max_tokens": 40, "prompt": "Stop", "extra_body": PLAIN}
    free = client.completions.create(**call).choices[0].text
    stop = free[17 : 17 + width]
    at = free.index(stop)
    call["stop"] = [stop, "never said"]
    if stream:
        parts = [chunk.choices[0] for chunk in client.completions.create(stream=True, **call)]
        shown = ""
        for part in parts:
            shown += part.text
            assert free.startswith(shown)
            assert stop not in shown
        end = parts[-1]
    else:
        end = client.completions.create(**call).choices[0]
        shown = end.text
    assert shown == free[:at]
    assert end.finish_reason == "stop"
    assert end.model_dump()["stop_reason"] == stop


def test_half_a_stop_string_is_shown_in_the_end(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {**GREEDY, "prompt": "Stop", "extra_body": PLAIN}
    free = client.completions.create(**call).choices[0].text
    chunks = client.completions.create(stop=free[-2:] + "\n", stream=True, **call)
    assert "".join(chunk.choices[0].text for chunk in chunks) == free


def test_stop_tokens(client: openai.OpenAI) -> None:
    free = client.completions.create(prompt="x", **GREEDY, extra_body={"return_token_ids": True})
    ids: list[int] = free.choices[0].model_dump()["token_ids"]
    position = next(i for i, token in enumerate(ids) if i and token not in ids[:i])
    answer = client.completions.create(
        prompt="x",
        **GREEDY,
        extra_body={"stop_token_ids": [ids[position]], "return_token_ids": True},
    )
    choice = answer.choices[0].model_dump()
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == ids[position]
    assert choice["token_ids"] == ids[: position + 1]


def test_echo(client: openai.OpenAI) -> None:
    plain = client.completions.create(prompt="Hello", **GREEDY, extra_body=PLAIN)
    echoed = client.completions.create(prompt="Hello", echo=True, **GREEDY, extra_body=PLAIN)
    assert echoed.choices[0].text == "Hello" + plain.choices[0].text
    ids = byte_tokenizer().encode("Hello")
    by_ids = client.completions.create(prompt=ids, echo=True, **GREEDY, extra_body=PLAIN)
    assert by_ids.choices[0].text == echoed.choices[0].text
    chunks = client.completions.create(
        prompt=["Hello", "Hello"], echo=True, n=2, stream=True, **GREEDY, extra_body=PLAIN
    )
    texts = dict.fromkeys(range(4), "")
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert set(texts.values()) == {echoed.choices[0].text}


def test_token_ids_come_back(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {**GREEDY, "prompt": "Hello", "extra_body": {"return_token_ids": True}}
    choice = client.completions.create(**call).choices[0].model_dump()
    assert choice["prompt_token_ids"] == byte_tokenizer().encode("Hello")
    assert len(choice["token_ids"]) == 12
    chunks = [c.choices[0].model_dump() for c in client.completions.create(stream=True, **call)]
    assert chunks[0]["prompt_token_ids"] == choice["prompt_token_ids"]
    streamed = [token for chunk in chunks for token in chunk.get("token_ids") or []]
    assert streamed == choice["token_ids"]


SAMPLING: list[dict[str, Any]] = [
    {"top_k": 1},
    {"min_p": 1.0},
    {"top_p": 1e-6},
    {"temperature": 0.0},
]


@pytest.mark.parametrize("fields", SAMPLING, ids=str)
def test_narrow_sampling_is_greedy(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    greedy = client.completions.create(prompt="Hello", **GREEDY, extra_body=PLAIN)
    call: dict[str, Any] = {"model": MODEL, "prompt": "Hello", "max_tokens": 12, "temperature": 1}
    call |= {"extra_body": {**PLAIN, **fields}}
    narrow = client.completions.create(**call)
    assert narrow.choices[0].text == greedy.choices[0].text


def test_bias_penalties_and_bad_words_change_the_text(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {**GREEDY, "prompt": "Hello", "max_tokens": 24}
    free = client.completions.create(**call, extra_body=PLAIN).choices[0].text
    token = byte_tokenizer().encode("Q")[0]
    biased = client.completions.create(**call, logit_bias={str(token): 100}, extra_body=PLAIN)
    assert biased.choices[0].text == "Q" * 24
    without = client.completions.create(**call, extra_body={**PLAIN, "bad_words": [free[0]]})
    assert free[0] not in without.choices[0].text
    penalised = client.completions.create(
        **call, frequency_penalty=2, presence_penalty=2, extra_body=PLAIN
    )
    assert len(set(penalised.choices[0].text)) > len(set(free)) or len(set(free)) == 24
    repeated = client.completions.create(**call, extra_body={**PLAIN, "repetition_penalty": 10.0})
    assert len(set(repeated.choices[0].text)) == 24


def test_min_tokens_and_ignore_eos(client: openai.OpenAI) -> None:
    only_end = {"300": 100}
    call: dict[str, Any] = {**GREEDY, "prompt": "x", "logit_bias": only_end}
    ended = client.completions.create(**call)
    assert ended.choices[0].finish_reason == "stop"
    assert ended.choices[0].text == ""
    later = client.completions.create(**call, extra_body={"min_tokens": 5})
    assert later.usage is not None
    assert later.usage.completion_tokens == 6
    never = client.completions.create(**call, extra_body={"ignore_eos": True})
    assert never.choices[0].finish_reason == "length"


def test_truncation_priority_salt_and_methods(client: openai.OpenAI) -> None:
    short = client.completions.create(prompt="llo", **GREEDY, extra_body=PLAIN)
    answer = client.completions.create(
        prompt="Hello",
        **GREEDY,
        extra_body={
            **PLAIN,
            "truncate_prompt_tokens": 3,
            "priority": -5,
            "cache_salt": "tenant",
            "decoding": "plain",
            "kv_cache": {"full": {}},
        },
    )
    assert answer.choices[0].text == short.choices[0].text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3
    echoed = client.completions.create(
        prompt="Hello", echo=True, **GREEDY, extra_body={**PLAIN, "truncate_prompt_tokens": 3}
    )
    assert echoed.choices[0].text == "llo" + short.choices[0].text


def test_prefix_cache_shows_in_usage(client: openai.OpenAI) -> None:
    prompt = "A prompt that is certainly longer than some pages of sixteen tokens are together."
    for salt, least in [("a", 0), ("a", 32), ("b", 0)]:
        answer = client.completions.create(prompt=prompt, **GREEDY, extra_body={"cache_salt": salt})
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached = answer.usage.prompt_tokens_details.cached_tokens
        assert cached is not None
        assert cached >= least
        assert least or cached == 0


@pytest.mark.parametrize("characters", ["é", "€", "🙂", "éß", "aé€🙂"])
def test_multi_byte_characters_are_never_split(client: openai.OpenAI, characters: str) -> None:
    """Only the bytes of a few characters may be said, in any order.

    The oracle is the decoding of all bytes at once: a split character would make two U+FFFD.
    """
    tokenizer = byte_tokenizer()
    body = {"allowed_token_ids": tokenizer.encode(characters), "ignore_eos": True}
    call: dict[str, Any] = {"model": MODEL, "prompt": "x", "max_tokens": 80, "temperature": 2}
    # The penalty evens the bytes out, so that some of them make whole characters.
    call |= {"frequency_penalty": 2, "extra_body": {**body, "return_token_ids": True}}
    whole_characters = 0
    for seed in range(3):
        choice = client.completions.create(seed=seed, **call).choices[0].model_dump()
        assert choice["text"] == tokenizer.decode(choice["token_ids"])
        whole_characters += len(set(characters) & set(choice["text"]))
        chunks = client.completions.create(seed=seed, **call, stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == choice["text"]
    assert whole_characters


def test_unknown_model_and_bad_value_raise_the_clients_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-5", prompt="x")
    assert unknown.value.code == "model_not_found"
    assert unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model=MODEL, prompt="x", temperature=3)
    assert wrong.value.param == "temperature"
    assert "at most 2" in wrong.value.message


def test_plain_http_says_the_same_as_the_client(http: httpx.Client, server: ServeProcess) -> None:
    body = {"prompt": "Hello", "temperature": 0, "max_tokens": 3, "stream": True}
    answer = http.post("/v1/completions", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-length" not in answer.headers
    events = answer.text.split("\n\n")
    assert events[-1] == ""
    assert events[-2] == "data: [DONE]"
    assert all(event.startswith("data: {") for event in events[:-2])
    assert server.process.poll() is None
