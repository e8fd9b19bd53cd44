from collections.abc import Callable
from typing import Any

import orjson
import pytest

from loadtest.contract import ChatStream, ContractError, check_completion
from tests.loadtest.answers import chat_events, completion

Spoil = Callable[[Any], Any]


def follow(payloads: list[bytes]) -> list[bool]:
    stream = ChatStream(max_tokens=3)
    texts = [stream.feed(payload) for payload in payloads]
    stream.close()
    return texts


def good() -> list[bytes]:
    return [*map(orjson.dumps, chat_events(3)), b"[DONE]"]


def test_good_answers_pass() -> None:
    check_completion(completion(3), max_tokens=3)
    assert follow(good()) == [False, True, True, True, False, False, False]


SPOILED_COMPLETIONS: dict[str, tuple[Any, str]] = {
    "not an object": ([], "choices"),
    "no choice": (completion(3) | {"choices": []}, "wrong length"),
    "no text": (completion(3) | {"choices": [{"finish_reason": "stop"}]}, "text"),
    "no reason": (completion(3) | {"choices": [{"text": ""}]}, "finish_reason is None"),
    "no usage": (completion(3) | {"usage": None}, "usage is missing"),
    "half a usage": (completion(3) | {"usage": {"prompt_tokens": 1}}, "incomplete"),
    "bad sum": (
        completion(3) | {"usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 3}},
        "add up",
    ),
    "too long": (completion(4), "4 tokens of at most 3"),
    "too short for its reason": (completion(2), "2 tokens of at most 3"),
}


@pytest.mark.parametrize(
    ("answer", "message"), SPOILED_COMPLETIONS.values(), ids=SPOILED_COMPLETIONS.keys()
)
def test_spoiled_completions_are_noticed(answer: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_completion(answer, max_tokens=3)


ROLE, TEXT, FINISH, USAGE, DONE = 0, 1, 4, 5, 6


def drop(index: int) -> Spoil:
    return lambda events: events[:index] + events[index + 1 :]


SPOILED_STREAMS: dict[str, tuple[Spoil, str]] = {
    "no role": (drop(ROLE), "no role"),
    "no finish": (drop(FINISH), "no finish_reason"),
    "no usage": (drop(USAGE), "usage is missing"),
    "no done": (drop(DONE), "no .DONE."),
    "after done": (lambda events: [*events, events[TEXT]], "after .DONE."),
    "after usage": (lambda e: [*e[:DONE], e[TEXT], e[DONE]], "between usage and"),
    "after finish": (lambda e: [*e[:USAGE], e[TEXT], *e[USAGE:]], "after its finish_reason"),
    "not json": (lambda events: [b"{", *events], "not JSON"),
    "no delta": (lambda events: [b'{"choices": [{}]}', *events], "delta is missing"),
    "neither": (lambda events: [b'{"choices": []}', *events], "neither"),
    "error": (lambda events: [b'{"error": {"message": "x"}}'], "error event"),
    "more texts than tokens": (lambda e: [*e[:FINISH], e[TEXT], *e[FINISH:]], "4 chunks of text"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILED_STREAMS.values(), ids=SPOILED_STREAMS.keys())
def test_spoiled_streams_are_noticed(spoil: Spoil, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        follow(spoil(good()))
