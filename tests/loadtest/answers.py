"""A stand-in server whose answers keep the contract, and the ways to spoil them."""

from collections.abc import Sequence
from typing import Any

from tests.bench.scripted import END, STREAM_HEAD, Step, event, plain

METRICS = (
    b"# HELP penstock_num_requests_running Requests.\n"
    b"# TYPE penstock_num_requests_running gauge\n"
    b"penstock_num_requests_running 0.0\n"
    b'penstock_num_requests_waiting{priority="low"} 0.0\n'
    b'penstock_num_requests_waiting{priority="high"} 0.0\n'
    b"penstock_kv_cache_pages_in_use 0.0\n"
    b"penstock_kv_cache_pages 128.0\n"
)


def usage(completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": 3,
        "completion_tokens": completion_tokens,
        "total_tokens": 3 + completion_tokens,
    }


def completion(max_tokens: int) -> dict[str, Any]:
    choice = {"index": 0, "text": " a" * max_tokens, "finish_reason": "length"}
    return {"choices": [choice], "usage": usage(max_tokens)}


def chat_events(max_tokens: int) -> list[dict[str, Any]]:
    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}

    return [
        chunk({"role": "assistant", "content": ""}),
        *[chunk({"content": " a"})] * max_tokens,
        chunk({}, "length"),
        {"choices": [], "usage": usage(max_tokens)},
    ]


BEFORE_TEXT_S = 0.02
"""Between the role chunk and the first text; long enough to survive rounding to milliseconds."""


def answer(body: dict[str, Any]) -> Sequence[Step]:
    max_tokens: int = body["max_tokens"]
    if not body.get("stream"):
        return [plain(200, completion(max_tokens))]
    events = [event(chunk) for chunk in chat_events(max_tokens)]
    first, *others = events
    return [
        STREAM_HEAD,
        first,
        BEFORE_TEXT_S,
        *others[:1],
        0.002,
        *others[1:],
        event(b"[DONE]"),
        END,
    ]
