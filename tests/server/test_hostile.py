"""Input that nobody should send: a 4xx in the contract's shape each, and the server goes on."""

import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.process import ServeProcess

JSON = {"Content-Type": "application/json"}
COMPLETIONS = "/v1/completions"
CHATS = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "x"}]
DEEP = b"[" * 200_000 + b"]" * 200_000


def prompt(raw: bytes) -> bytes:
    return b'{"max_tokens":1,"prompt":' + raw + b"}"


def message(raw: bytes) -> bytes:
    return b'{"max_tokens":1,"messages":[{"role":"user","content":' + raw + b"}]}"


RAW: dict[str, tuple[str, bytes, int]] = {
    "empty": (COMPLETIONS, b"", 400),
    "broken": (COMPLETIONS, b'{"prompt": "x"', 400),
    "trailing": (COMPLETIONS, b'{"prompt":"x"} x', 400),
    "a string": (COMPLETIONS, b'"prompt"', 400),
    "a list": (COMPLETIONS, b"[1]", 400),
    "null": (COMPLETIONS, b"null", 400),
    "no prompt": (COMPLETIONS, b"{}", 400),
    "no messages": (CHATS, b"{}", 400),
    "invalid UTF-8": (COMPLETIONS, prompt(b'"\xff\xfe"'), 400),
    "overlong UTF-8": (COMPLETIONS, prompt(b'"\xc0\xaf"'), 400),
    "surrogate in UTF-8": (COMPLETIONS, prompt(b'"\xed\xa0\x80"'), 400),
    "escaped surrogate": (COMPLETIONS, prompt(rb'"\ud800"'), 400),
    "escaped surrogate in a chat": (CHATS, message(rb'"\udfff"'), 400),
    "escaped surrogate in a key": (COMPLETIONS, rb'{"prompt":"x","\ud800":1}', 400),
    "null byte": (COMPLETIONS, prompt(b'"a\x00b"'), 400),
    "null byte in the model": (COMPLETIONS, rb'{"prompt":"x","model":"\u0000"}', 404),
    "byte order mark": (COMPLETIONS, b"\xef\xbb\xbf" + prompt(b'"x"'), 400),
    "UTF-16": (COMPLETIONS, '{"prompt":"x"}'.encode("utf-16"), 400),
    "NaN": (COMPLETIONS, b'{"prompt":"x","temperature":NaN}', 400),
    "Infinity": (COMPLETIONS, b'{"prompt":"x","temperature":Infinity}', 400),
    "-Infinity": (COMPLETIONS, b'{"prompt":"x","presence_penalty":-Infinity}', 400),
    "1e400": (COMPLETIONS, b'{"prompt":"x","temperature":1e400}', 400),
    "10**400": (COMPLETIONS, b'{"prompt":"x","n":1' + b"0" * 400 + b"}", 400),
    "10**400 as a token": (COMPLETIONS, prompt(b"[1" + b"0" * 400 + b"]"), 400),
    "2**64 as a token": (COMPLETIONS, prompt(b"[18446744073709551616]"), 400),
    "a million digits": (COMPLETIONS, b'{"prompt":"x","n":' + b"9" * 1_000_000 + b"}", 400),
    "deep": (COMPLETIONS, prompt(DEEP), 400),
    "deep in a chat": (CHATS, message(DEEP), 400),
    "deep in decoding": (COMPLETIONS, b'{"prompt":"x","decoding":{"plain":' + DEEP + b"}}", 400),
    "deep but parsed": (
        COMPLETIONS,
        b'{"prompt":"x","decoding":{"plain":' + b"[" * 900 + b"]" * 900 + b"}}",
        400,
    ),
    "token not in the vocabulary": (COMPLETIONS, prompt(b"[320]"), 400),
    "negative token": (COMPLETIONS, prompt(b"[-1]"), 400),
    "fractional token": (COMPLETIONS, prompt(b"[1.5]"), 400),
    "mixed prompt": (COMPLETIONS, prompt(b'[1,"x"]'), 400),
    "mixed batch": (COMPLETIONS, prompt(b'["x",[1]]'), 400),
    "nested batch": (COMPLETIONS, prompt(b"[[[1]]]"), 400),
    "object prompt": (COMPLETIONS, prompt(b'{"a":1}'), 400),
    "boolean prompt": (COMPLETIONS, prompt(b"true"), 400),
    "empty prompt": (COMPLETIONS, prompt(b'""'), 400),
    "empty prompt in a batch": (COMPLETIONS, prompt(b'["x",""]'), 400),
    "empty ids": (COMPLETIONS, prompt(b"[]"), 400),
    "100,000 tokens": (COMPLETIONS, prompt(b"[" + b"1," * 99_999 + b"1]"), 400),
    "100,000 characters": (COMPLETIONS, prompt(b'"' + b"x" * 100_000 + b'"'), 400),
    "100,000 characters in a chat": (CHATS, message(b'"' + b"x" * 100_000 + b'"'), 400),
    "4 MB prompt": (COMPLETIONS, prompt(b'"' + b"x" * 4_000_000 + b'"'), 400),
    "a million wrong tokens": (COMPLETIONS, prompt(b"[" + b'"x",' * 999_999 + b"1]"), 400),
    "many null tokens": (COMPLETIONS, prompt(b"[1," + b"null," * 700_000 + b"1]"), 400),
    "many empty batches": (COMPLETIONS, prompt(b"[" + b"[]," * 199_999 + b"[]]"), 400),
    "a million stops": (COMPLETIONS, b'{"prompt":"x","stop":[' + b"1," * 999_999 + b"1]}", 400),
    "a million fields": (
        COMPLETIONS,
        b'{"messages":1,' + b",".join(b'"f%d":1' % i for i in range(300_000)) + b"}",
        400,
    ),
    "10 MB": (COMPLETIONS, prompt(b'"' + b"x" * 10_000_000 + b'"'), 413),
    "10 MB of nothing": (CHATS, b" " * 10_000_000, 413),
    "60 MB": (COMPLETIONS, b"x" * 60_000_000, 413),
    "unknown model": (COMPLETIONS, b'{"prompt":"x","model":"gpt-5"}', 404),
    "unknown model in a chat": (
        CHATS,
        b'{"model":"x","messages":[{"role":"user","content":"x"}]}',
        404,
    ),
    "brackets in a text": (COMPLETIONS, prompt(b'"' + b"[" * 300_000 + b'"'), 400),
    "path as model": (COMPLETIONS, b'{"prompt":"x","model":"../../etc/passwd"}', 404),
    "content is a number": (CHATS, message(b"5"), 400),
    "content is null": (CHATS, message(b"null"), 400),
    "image part": (
        CHATS,
        message(b'[{"type":"image_url","image_url":{"url":"http://169.254.169.254/"}}]'),
        400,
    ),
    "part without text": (CHATS, message(b'[{"type":"text"}]'), 400),
    "unknown role": (CHATS, b'{"messages":[{"role":"root","content":"x"}]}', 400),
    "tool role": (CHATS, b'{"messages":[{"role":"tool","content":"x"}]}', 400),
    "message is a string": (CHATS, b'{"messages":["x"]}', 400),
    "messages is a string": (CHATS, b'{"messages":"x"}', 400),
    "messages is an object": (CHATS, b'{"messages":{"role":"user","content":"x"}}', 400),
    "tokenize nothing": ("/tokenize", b"{}", 400),
    "tokenize a number": ("/tokenize", b'{"prompt":5}', 400),
    "tokenize too much": ("/tokenize", b'{"prompt":"' + b"x" * 100_000 + b'"}', 400),
    "detokenize a string": ("/detokenize", b'{"tokens":"x"}', 400),
    "detokenize the unknown": ("/detokenize", b'{"tokens":[320]}', 400),
    "detokenize 2**40": ("/detokenize", b'{"tokens":[1099511627776]}', 400),
}


def check_shape(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert set(content) == {"error"}
    error: dict[str, Any] = content["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert isinstance(error["message"], str)
    assert 0 < len(error["message"]) < 1000
    assert "Traceback" not in error["message"]
    assert "/work" not in error["message"]
    return error


@pytest.fixture(autouse=True)
def goes_on(http: httpx.Client) -> Iterator[None]:
    yield
    answer = http.post(COMPLETIONS, json={"prompt": "x", "max_tokens": 1})
    assert answer.status_code == 200


@pytest.mark.parametrize(("path", "body", "status"), RAW.values(), ids=RAW.keys())
def test_body_is_refused(http: httpx.Client, path: str, body: bytes, status: int) -> None:
    answer = http.post(path, content=body, headers=JSON)
    assert answer.status_code == status, answer.text[:300]
    check_shape(answer)


UNSUPPORTED: list[tuple[str, dict[str, Any]]] = [
    (CHATS, {"tools": [{"type": "custom", "custom": {"name": "f"}}]}),
    (CHATS, {"tools": "5"}),
    (CHATS, {"tool_choice": "required"}),
    (CHATS, {"tool_choice": {"type": "function", "function": {"name": "f"}}}),
    (CHATS, {"functions": [{"name": "f"}]}),
    (CHATS, {"function_call": {"name": "f"}}),
    (CHATS, {"response_format": {"type": "json_schema", "json_schema": {}}}),
    (CHATS, {"response_format": "json"}),
    (CHATS, {"response_format": []}),
    (CHATS, {"modalities": ["text", "audio"]}),
    (CHATS, {"audio": {"voice": "x"}}),
    (CHATS, {"response_format": {"type": "json_schema"}}),
    (CHATS, {"structured_outputs": {"regex": "("}}),
    (CHATS, {"guided_json": 5}),
    (CHATS, {"chat_template": "{{ 1 }}"}),
    (CHATS, {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}, *HELLO]}),
    (COMPLETIONS, {"suffix": "the end"}),
    (COMPLETIONS, {"suffix": 0}),
    (COMPLETIONS, {"use_beam_search": True}),
    (COMPLETIONS, {"use_beam_search": 1}),
    (COMPLETIONS, {"guided_regex": 5}),
]


@pytest.mark.parametrize(("path", "fields"), UNSUPPORTED, ids=lambda case: str(case)[:40])
def test_what_is_not_there_yet_is_refused(
    http: httpx.Client, path: str, fields: dict[str, Any]
) -> None:
    base = {"messages": HELLO} if path == CHATS else {"prompt": "x"}
    answer = http.post(path, json={"max_tokens": 1, **base, **fields})
    assert answer.status_code == 400, answer.text
    error = check_shape(answer)
    assert error["param"].split(".")[0] == next(iter(fields))


NEUTRAL: list[tuple[str, dict[str, Any]]] = [
    (CHATS, {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}}),
    (CHATS, {"functions": [], "function_call": "none", "modalities": ["text"]}),
    (COMPLETIONS, {"suffix": "", "best_of": 1, "use_beam_search": False}),
]


@pytest.mark.parametrize(("path", "fields"), NEUTRAL, ids=["tools", "functions", "suffix"])
def test_asking_for_nothing_special_is_fine(
    http: httpx.Client, path: str, fields: dict[str, Any]
) -> None:
    base = {"messages": HELLO} if path == CHATS else {"prompt": "x"}
    assert http.post(path, json={"max_tokens": 1, **base, **fields}).status_code == 200


CONTRADICTIONS: list[tuple[str, dict[str, Any], str]] = [
    (COMPLETIONS, {"stream_options": {"include_usage": True}}, "stream_options"),
    (COMPLETIONS, {"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
    (COMPLETIONS, {"best_of": 2, "n": 3}, "best_of"),
    (COMPLETIONS, {"min_tokens": 2}, "min_tokens"),
    (COMPLETIONS, {"prompt": ["x"] * 200, "n": 6}, "prompt"),
    (COMPLETIONS, {"n": 128}, "n"),
    (COMPLETIONS, {"prompt": "x" * 600}, "prompt"),
    (COMPLETIONS, {"prompt": "x" * 500, "max_tokens": 20}, "max_tokens"),
    (CHATS, {"top_logprobs": 2}, "top_logprobs"),
    (CHATS, {"max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens"),
    (
        CHATS,
        {"add_generation_prompt": True, "continue_final_message": True},
        "continue_final_message",
    ),
    (CHATS, {"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
    (CHATS, {"chat_template_kwargs": {"tools": 1}}, "chat_template_kwargs.tools"),
    (CHATS, {"chat_template_kwargs": {"enable_thinking": []}}, "chat_template_kwargs"),
    (CHATS, {"decoding": "nope"}, "decoding.nope"),
    (CHATS, {"decoding": {"nope": {}}}, "decoding.nope"),
    (CHATS, {"decoding": {"plain": {"x": 1}}}, "decoding.plain.x"),
    (CHATS, {"decoding": {"plain": 5}}, "decoding.plain"),
    (CHATS, {"kv_cache": ["full", "full"]}, "kv_cache.full"),
    (CHATS, {"kv_cache": "nope"}, "kv_cache.nope"),
    (COMPLETIONS, {"logit_bias": {"320": 1}}, "logit_bias"),
    (COMPLETIONS, {"allowed_token_ids": [320]}, "allowed_token_ids"),
    (COMPLETIONS, {"stop_token_ids": [320]}, "stop_token_ids"),
]


@pytest.mark.parametrize(
    ("path", "fields", "param"), CONTRADICTIONS, ids=lambda case: str(case)[:40]
)
def test_contradiction_is_refused(
    http: httpx.Client, path: str, fields: dict[str, Any], param: str
) -> None:
    base = {"messages": HELLO} if path == CHATS else {"prompt": "x"}
    if "max_completion_tokens" not in fields:
        base["max_tokens"] = 1  # type: ignore[assignment]
    answer = http.post(path, json={**base, **fields})
    assert answer.status_code == 400, answer.text
    assert check_shape(answer)["param"].startswith(param)


def test_unknown_names_are_refused_with_what_exists(http: httpx.Client) -> None:
    for field, exists in [("decoding", "plain"), ("kv_cache", "full")]:
        answer = http.post(COMPLETIONS, json={"prompt": "x", field: "nope"})
        assert exists in answer.json()["error"]["message"]


def test_unknown_fields_are_ignored_by_name(http: httpx.Client) -> None:
    answer = http.post(
        COMPLETIONS, json={"prompt": "x", "max_tokens": 1, "zebra": 1, "bad\r\nname": 2}
    )
    assert answer.status_code == 200
    assert answer.headers["x-penstock-ignored"] == "zebra, bad??name"
    many = {f"f{i}": 1 for i in range(1000)}
    answer = http.post(COMPLETIONS, json={"prompt": "x", "max_tokens": 1, **many})
    assert len(answer.headers["x-penstock-ignored"]) < 2000


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("POST", "/v1/nope", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/nope", 404),
        ("GET", "/v1/models/%2e%2e%2fetc", 404),
        ("GET", "/docs", 404),
        ("GET", "/" + "x" * 5000, 404),
        ("GET", "/v1/completions/", 404),
    ],
)
def test_wrong_route(http: httpx.Client, method: str, path: str, status: int) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    check_shape(answer)


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/responses"), ("GET", "/")])
def test_what_comes_later_says_so(http: httpx.Client, method: str, path: str) -> None:
    answer = http.request(method, path)
    assert answer.status_code == 400
    check_shape(answer)
    assert "not supported yet" in answer.json()["error"]["message"]


def test_wrong_media_type(http: httpx.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = http.post(COMPLETIONS, content=b"{}", headers={"Content-Type": kind})
        assert answer.status_code == 415
        check_shape(answer)


def exchange(server: ServeProcess, request: bytes) -> bytes:
    """The raw answer to raw bytes; the server must close the connection itself."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    return answer


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

RAW_HTTP: dict[str, tuple[bytes, int]] = {
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "no version": (b"GET /\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two lengths": (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
    "negative length": (HEAD + b"Content-Length: -1\r\n\r\n", 400),
    "enormous length": (HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n", 400),
    "large head": (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 100_000, 431),
    "many headers": (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 20_000, 431),
    "broken chunk": (CHUNKED + b"zz\r\n", 400),
    "expected, and too large": (
        HEAD + b"Expect: 100-continue\r\nContent-Length: 10000000\r\n\r\n",
        413,
    ),
    "chunked and too large": (
        CHUNKED + (b"100000\r\n" + b" " * 2**20 + b"\r\n") * 9 + b"0\r\n\r\n",
        413,
    ),
}


@pytest.mark.parametrize(("request_", "status"), RAW_HTTP.values(), ids=RAW_HTTP.keys())
def test_raw_http_is_refused(server: ServeProcess, request_: bytes, status: int) -> None:
    answer = exchange(server, request_)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert b"application/json" in head.lower()
    assert body.startswith(b'{"error":{"message":')


def test_log_tells_nothing_went_wrong_inside(server: ServeProcess) -> None:
    assert "Traceback" not in server.log
