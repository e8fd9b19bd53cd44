"""Requests that are nearly right: valid ones with something broken, from a seed.

Three levels: the fields of a body, its bytes, and the HTTP around it. Everything is a function of
the random source, so that a finding can be asked again by its number.
"""

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import orjson

Body = dict[str, Any]

HELLO: list[Body] = [{"role": "user", "content": "Write a story."}]
SEEDS: tuple[tuple[str, Body], ...] = (
    ("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 4}),
    ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 2, "echo": True, "logprobs": 3}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2, "n": 2, "stream": True}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 4, "kv_cache": {"window": {}}}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 4, "decoding": {"beam": {"width": 2}}}),
    ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 4, "stream": True}),
    (
        "/v1/chat/completions",
        {"messages": HELLO, "max_tokens": 4, "decoding": {"jacobi": {}, "cfg": {"scale": 2.0}}},
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "system", "content": "Be kind."}, *HELLO],
            "max_tokens": 3,
            "logprobs": True,
            "top_logprobs": 2,
            "stop": ["x"],
            "logit_bias": {"5": 1.0},
            "seed": 1,
        },
    ),
    ("/tokenize", {"prompt": "Hello"}),
    ("/tokenize", {"messages": HELLO}),
    ("/detokenize", {"tokens": [1, 2, 3]}),
)

NAMES = (
    *("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "min_tokens", "n"),
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos"),
    *("stream", "stream_options", "logprobs", "top_logprobs", "prompt_logprobs", "echo", "suffix"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "bad_words"),
    *("allowed_token_ids", "truncate_prompt_tokens", "return_token_ids", "priority", "cache_salt"),
    *("decoding", "kv_cache", "add_generation_prompt", "continue_final_message", "tools"),
    *("tool_choice", "response_format", "user", "metadata", "best_of", "chat_template_kwargs"),
    *("skip_special_tokens", "include_stop_str_in_output", "truncation_side", "tokens"),
    *("add_special_tokens", "return_token_strs", "role", "content", "name", "type", "text"),
)

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -0.0, 1, -1, 2, 1.0, 1.5, 100.0, 1e308, -1e308, 5e-324),
    *(2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), 2**64 - 1, 10**6),
    *("", " ", "a", "5", "null", "true", "-1", "\x00", "\ud7ff", "\u202e", "é" * 100, "x" * 5000),
    *("<|im_end|>", "</s>", "<s>", "{{ 7 * 7 }}", "../../etc/passwd", "%s%n", "'; --", "\r\n\r\n"),
    *([], {}, [[]], [{}], [None], {"": None}, [1] * 300, ["a"] * 65, {"a": {"b": {"c": []}}}),
    *({"type": "text"}, {"type": "json_object"}, {"include_usage": True}, {"tot": {}}, {"h2o": {}}),
    *({"cfg": {"scale": 1e9}}, {"jacobi": {"window": 256}}, {"beam": {"width": 10**9}}),
    *(["jacobi", "ngram"], ["jacobi", "cfg"], {"1": 100}, {"x": 1}, {"-1": 1}, {"999999999": 1}),
    *([{"role": "user", "content": [{"type": "text", "text": "a"}]}], [{"role": "tool"}]),
)


def fuzzed(source: random.Random, host: str) -> bytes:
    """The bytes of one request."""
    path, body = source.choice(SEEDS)
    body = orjson.loads(orjson.dumps(body))
    for _ in range(source.choice((0, 1, 1, 1, 2, 3))):
        _break(body, source)
    content = orjson.dumps(body)
    if source.random() < 0.15:
        content = source.choice(_BYTES)(content, source)
    head = {
        "host": host,
        "content-type": "application/json",
        "content-length": str(len(content)),
        "connection": "close",
    }
    method = "POST"
    if source.random() < 0.15:
        method, path, head, content = _around(method, path, head, content, source)
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


def _break(value: Any, source: random.Random) -> None:
    """Change one thing somewhere in a JSON value."""
    if isinstance(value, dict) and value:
        key = source.choice(list(value))
        inner = value[key]
        if isinstance(inner, dict | list) and inner and source.random() < 0.4:
            _break(inner, source)
        elif source.random() < 0.2:
            del value[key]
        elif source.random() < 0.5:
            value[source.choice(NAMES)] = _value(source)
        else:
            value[key] = _value(source)
    elif isinstance(value, list) and value:
        at = source.randrange(len(value))
        if isinstance(value[at], dict | list) and source.random() < 0.6:
            _break(value[at], source)
        elif source.random() < 0.3:
            value.extend(deepcopy(value) * source.choice((1, 20)))
        else:
            value[at] = _value(source)


def _value(source: random.Random) -> Any:
    return deepcopy(source.choice(VALUES))  # or a later change would reach the next request


def _flipped(content: bytes, source: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(source.randint(1, 4)):
        changed[source.randrange(len(changed))] = source.randrange(256)
    return bytes(changed)


_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flipped,
    lambda content, source: content[: source.randrange(len(content))],
    lambda content, source: content * 2,
    lambda content, source: b"\xef\xbb\xbf" + content,
    lambda content, source: content.decode().encode("utf-16"),
    lambda content, source: b"[" * source.choice((10, 1_000, 200_000)),
    lambda content, source: b'{"a":' * source.choice((10, 1_000, 100_000)),
    lambda content, source: content[:-1] + b',"max_tokens":1,"max_tokens":-1}',
    lambda content, source: content[:-1] + b',"temperature":NaN,"top_p":Infinity}',
    lambda content, source: (
        content[:-1] + b',"seed":' + b"9" * source.choice((20, 400, 5_000)) + b"}"
    ),
    lambda content, source: b"",
    lambda content, source: source.randbytes(source.choice((1, 40, 4_000))),
    lambda content, source: b"[" + b"0," * source.choice((1_000, 100_000)) + b"0]",
)


def _around(
    method: str, path: str, head: dict[str, str], content: bytes, source: random.Random
) -> tuple[str, str, dict[str, str], bytes]:
    """Break the HTTP around the body."""
    match source.randrange(8):
        case 0:
            method = source.choice(("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "FOO"))
        case 1:
            path = source.choice(
                ("/v1/v1/completions", "/v1/models/%00", "//v1/models", "/v1/../metrics", "/v1/")
            )
        case 2:
            head["content-type"] = source.choice(
                (
                    "text/plain",
                    "application/json; charset=utf-16",
                    "",
                    "multipart/form-data",
                    "a/b/c",
                )
            )
        case 3:
            head["content-length"] = source.choice(("-1", "abc", "99999999999", "1e3", "+5", "0"))
        case 4:
            del head["content-length"]
            head["transfer-encoding"] = source.choice(("chunked", "gzip", "chunked, chunked"))
            if source.random() < 0.5:
                content = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
        case 5:
            head["expect"] = source.choice(("100-continue", "200-ok"))
        case 6:
            head["x-request-id"] = source.choice(("a" * 200, "<script>", "ok-1", "é"))
        case _:
            head["accept"] = source.choice(("text/event-stream", "image/png", "*/*;q=0"))
    return method, path, head, content
