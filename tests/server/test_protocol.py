"""Small pieces, alone: logprobs, messages of refusals, usage, the statistics line, the pool."""

import asyncio
import threading
from dataclasses import replace
from typing import Any

import orjson
import pytest

from penstock.engine.requests.tokenizer import Tokenizer
from penstock.engine.state.counters import MethodCounters
from penstock.engine.state.request import TokenLogprobs, Usage
from penstock.errors import (
    ContextLengthError,
    EngineDeadError,
    NotFoundError,
    OverloadedError,
    PenstockError,
    RequestError,
    UnavailableError,
)
from penstock.server.errors import HttpError, error_body, error_headers, render_error, status_of
from penstock.server.log import stats_line
from penstock.server.offload import Offload
from penstock.server.protocol.chat_body import ChatBody
from penstock.server.protocol.completion_body import CompletionBody
from penstock.server.protocol.logprobs import CompletionLogprobs, chat_logprobs, prompt_logprobs
from penstock.server.protocol.parse import parse_body
from penstock.server.protocol.spelling import Spelling
from penstock.server.protocol.usage import usage_object
from tests.server.scripted import Stats
from tests.tiny import EOS, byte_tokenizer

SPELLING = Spelling(Tokenizer(byte_tokenizer(), [EOS]))


def entries(text: str) -> list[TokenLogprobs]:
    return [
        TokenLogprobs(token_id=token, logprob=-0.5, rank=1, top=((token, -0.5), (0, -1.0)))
        for token in byte_tokenizer().encode(text)
    ]


def test_places_are_those_of_the_choice() -> None:
    lists = CompletionLogprobs(SPELLING, begin=7).of(entries("aéb"), 1, [0, 1, 1, 2])
    assert lists["text_offset"] == [7, 8, 8, 9]
    assert lists["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "b"]


def test_chosen_token_is_always_among_the_alternatives() -> None:
    rare = TokenLogprobs(token_id=5, logprob=-9.0, rank=99, top=((7, -0.1), (8, -0.2)))
    lists = CompletionLogprobs(SPELLING).of([rare], 1, [0])
    assert lists["top_logprobs"] == [{SPELLING.text_of(7): -0.1, SPELLING.text_of(5): -9.0}]
    places = prompt_logprobs([rare], 2, SPELLING)
    assert places[0] is None
    assert places[1] == {
        "7": {"logprob": -0.1, "rank": 1, "decoded_token": SPELLING.text_of(7)},
        "8": {"logprob": -0.2, "rank": 2, "decoded_token": SPELLING.text_of(8)},
        "5": {"logprob": -9.0, "rank": 99, "decoded_token": SPELLING.text_of(5)},
    }


def test_chat_logprobs_carry_bytes() -> None:
    content = chat_logprobs(entries("é"), SPELLING)["content"]
    assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9]]
    assert [entry["token"] for entry in content] == ["bytes:\\xc3", "bytes:\\xa9"]


def test_usage_adds_up() -> None:
    usages = [
        Usage(prompt_tokens=5, completion_tokens=7, cached_tokens=2, steps=3),
        Usage(prompt_tokens=1, completion_tokens=2, steps=2),
    ]
    assert usage_object(usages) == {
        "prompt_tokens": 6,
        "completion_tokens": 9,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 2},
        "penstock": {"steps": 5},
    }
    drafts, guidance = MethodCounters(drafted=8, accepted=5), MethodCounters(guidance_tokens=7)
    usages.append(Usage(prompt_tokens=1, completion_tokens=6, steps=1, counters=drafts))
    usages.append(Usage(prompt_tokens=1, completion_tokens=3, steps=3, counters=guidance))
    assert usage_object(usages)["penstock"] == {
        "steps": 9,
        "drafted": 8,
        "accepted": 5,
        "mean_acceptance_length": 2.0,
        "guidance_tokens": 7,
    }


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": 3}, "temperature", "temperature is 3; it must be at most 2"),
    ({"n": "5"}, "n", "n is '5'; it must be an integer"),
    ({"stop": ["a", 5]}, "stop.1", "stop.1 is 5; it must be a string"),
    ({"stop": {"a": 1}}, "stop", "stop is an object; it must be a string or a list of strings"),
    ({"stop": ["a"] * 65}, "stop", "stop has 65 items; it may have at most 64"),
    ({"logit_bias": {"7": 101}}, "logit_bias.7", "logit_bias.7 is 101; it must be at most 100"),
    ({"stream": 1}, "stream", "stream is 1; it must be true or false"),
    ({"stream_options": 5}, "stream_options", "stream_options is 5; it must be an object"),
    ({"prompt": None}, "prompt", "prompt is missing; the request needs it"),
    ({"prompt": [[1], [-1]]}, "prompt.1.0", "prompt.1.0 is -1; it must be at least 0"),
    ({"user": "x" * 600}, "user", "user has 600 characters; it may have at most 512"),
]


@pytest.mark.parametrize(("fields", "param", "message"), REFUSALS, ids=lambda v: str(v)[:24])
def test_refusals_give_place_value_and_limit(
    fields: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_body(CompletionBody, orjson.dumps({"prompt": "x", **fields}))
    assert refusal.value.param == param
    assert refusal.value.message == message


def test_refusals_inside_messages_give_their_place() -> None:
    def refusal(*messages: Any) -> RequestError:
        with pytest.raises(RequestError) as info:
            parse_body(ChatBody, orjson.dumps({"messages": messages}))
        return info.value

    good = {"role": "user", "content": "x"}
    assert refusal(good, {"role": "user"}).param == "messages.1"
    assert refusal(good, {"content": "x"}).param == "messages.1.role"
    image = {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url"}]}
    assert refusal(good, image).param == "messages.1.content.1.image_url"
    sound = {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "input_audio"}]}
    assert refusal(good, sound).param == "messages.1.content.1.type"
    tools = {"role": "assistant", "content": "x", "tool_calls": [1]}
    assert refusal(tools).param == "messages.0.tool_calls.0"
    older = {"role": "assistant", "content": "x", "function_call": {"name": "f"}}
    assert refusal(older).param == "messages.0.function_call"
    assert "tool_calls" in refusal(older).message


ERRORS: list[tuple[Exception, int, str | None]] = [
    (RequestError("x", param="p", code="c"), 400, "c"),
    (ContextLengthError("x", limit_tokens=8, param="p"), 400, "context_length_exceeded"),
    (NotFoundError("x", param="model", code="model_not_found"), 404, "model_not_found"),
    (HttpError(413, "x", code="c"), 413, "c"),
    (OverloadedError("x", retry_after_s=3), 429, "rate_limit_exceeded"),
    (UnavailableError("x"), 503, "unavailable"),
    (EngineDeadError("x"), 503, "engine_dead"),
    (PenstockError("x at /some/path"), 500, "internal_error"),
    (ZeroDivisionError("x at /some/path"), 500, "internal_error"),
]


@pytest.mark.parametrize(
    ("error", "status", "code"), ERRORS, ids=lambda v: type(v).__name__ if v else None
)
def test_every_error_has_its_status(error: Exception, status: int, code: str | None) -> None:
    assert status_of(error) == status
    content = orjson.loads(error_body(error))["error"]
    assert content["code"] == code
    assert "/some/path" not in content["message"]


def test_overload_says_when_to_come_back() -> None:
    assert error_headers(OverloadedError("x", retry_after_s=3)) == {"Retry-After": "3"}
    assert error_headers(OverloadedError("x", retry_after_s=0)) == {"Retry-After": "1"}
    assert error_headers(UnavailableError("x")) == {"Retry-After": "1"}


def test_what_is_no_unicode_does_not_break_an_error() -> None:
    assert orjson.loads(render_error(400, "\ud800", param="\udfff"))["error"]["param"] == "?"


def test_statistics_line() -> None:
    quiet = Stats()
    assert stats_line(quiet, quiet, 10) is None
    busy = replace(
        quiet, running=2, waiting=1, pages_in_use=4, prompt_tokens=100, generation_tokens=50
    )
    line = stats_line(quiet, busy, 10)
    assert line == (
        "prompt 10.0 tokens/s, generation 5.0 tokens/s, running 2, waiting 1, KV cache 50.0 %"
    )
    cached = replace(busy, prefix_queried_tokens=200, prefix_hit_tokens=50)
    assert "prefix cache hits 25.0 %" in (stats_line(quiet, cached, 10) or "")
    assert stats_line(busy, busy, 10) is not None
    assert stats_line(busy, replace(busy, running=0, waiting=0), 10) is None


def test_offloaded_work_is_bounded() -> None:
    async def fill() -> None:
        release = threading.Event()
        offload = Offload(threads=1, max_pending=2)
        first, second = (asyncio.create_task(offload.run(release.wait, 20)) for _ in range(2))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await offload.run(lambda: None)
        # One who leaves makes room, where the work has not begun; it never will.
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await asyncio.sleep(0)
        third = asyncio.create_task(offload.run(lambda: 5))
        await asyncio.sleep(0)
        assert not third.done()
        release.set()
        assert await first
        assert await third == 5
        offload.close()

    asyncio.run(fill())


def test_offloaded_errors_come_back() -> None:
    async def fail() -> None:
        offload = Offload(threads=1, max_pending=1)
        with pytest.raises(ZeroDivisionError):
            await offload.run(lambda: 1 // 0)
        offload.close()

    asyncio.run(fail())
