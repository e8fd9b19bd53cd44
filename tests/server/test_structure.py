"""Bodies that are cheap to send and dear to parse.

The kind: work in one piece under the interpreter's lock, sized by the caller: while it lasts no
stream and no probe is served. A parser is such a piece, wherever one is called before its bound;
there is one place that parses now, and a test that no other appears.
"""

import ast
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import orjson
import pytest
from pydantic import BaseModel

from penstock.errors import RequestError
from penstock.server.protocol import parse
from penstock.server.protocol.chat_body import ChatBody
from penstock.server.protocol.completion_body import CompletionBody
from penstock.server.protocol.parse import parse_object, validated
from penstock.server.protocol.structure import MAX_CONTAINERS, MAX_KEYS, MAX_VALUES
from penstock.server.protocol.token_bodies import (
    DetokenizeBody,
    TokenizeChatBody,
    TokenizeTextBody,
)
from tests.server.scripted import scripted

BODIES: list[type[BaseModel]] = [
    CompletionBody,
    ChatBody,
    TokenizeTextBody,
    TokenizeChatBody,
    DetokenizeBody,
]
ROUTES = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def door() -> Iterator[httpx.Client]:
    with scripted() as server, server.client() as client:
        yield client


def many(item: bytes, number: int) -> bytes:
    return b",".join([item] * number)


def keys(number: int) -> bytes:
    return b",".join(b'"%x":1' % index for index in range(number))


def containers(number: int) -> bytes:
    return b'{"a":[' + many(b"[]", number - 2) + b"]}"


def an_object(number: int) -> bytes:
    return b"{" + keys(number) + b"}"


def numbers(number: int) -> bytes:
    return b'{"a":[' + many(b"1", number) + b"]}"


FLOODS: dict[str, bytes] = {
    "lists": b'{"prompt":[' + many(b"[]", 1_300_000) + b"]}",
    "no object at all": many(b"[]", 1_300_000),
    "objects": b'{"messages":[' + many(b"{}", 1_300_000) + b"]}",
    "keys": b"{" + keys(380_000) + b"}",
    "spaced keys": b"{" + keys(300_000).replace(b":", b"\t: ") + b"}",
    "keys that end in a backslash": b"{" + keys(280_000).replace(b'":', b'\\\\":') + b"}",
    "numbers": b'{"tokens":[' + many(b"1", 2_000_000) + b"]}",
    "texts": b'{"prompt":[' + many(b'""', 1_300_000) + b"]}",
    "texts of a backslash": b'{"prompt":[' + many(b'"\\\\"', 800_000) + b"]}",
    "texts of a quote": b'{"prompt":[' + many(b'"\\""', 800_000) + b"]}",
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
def test_floods_are_refused_before_they_are_parsed(
    door: httpx.Client, path: str, flood: bytes
) -> None:
    answer = door.post(path, content=flood, headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "invalid_json"
    assert "the limit is" in error["message"]


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (containers, MAX_CONTAINERS),
        (an_object, MAX_KEYS),
        (numbers, MAX_VALUES),
    ],
    ids=["containers", "keys", "values"],
)
def test_bounds_on_both_ends(make: Callable[[int], bytes], limit: int) -> None:
    assert parse_object(make(limit))
    with pytest.raises(RequestError, match=f"has {limit + 1} .* the limit is {limit}"):
        parse_object(make(limit + 1))


@pytest.mark.parametrize(
    "text",
    ['{"a": [1, 2]},', "[[[{{{", ":::,,,", "\\", '\\"[', '"[{:,', "\\\\[", "{\\"],
    ids=repr,
)
def test_signs_in_texts_do_not_count(text: str) -> None:
    content = text * (1_000_000 // len(text))
    body = orjson.dumps({"prompt": content, "n": [1, {"a": content}]})
    assert parse_object(body)["prompt"] == content


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt":[' + many(b"12345", MAX_VALUES) + b"]}",
        b'{"prompt":[' + many(b'"\\u00e9"', MAX_VALUES) + b"]}",
        b"{" + keys(MAX_KEYS) + b"}",
        b'{"messages":[' + many(b'{"a":[]}', MAX_CONTAINERS // 2 - 1) + b"]}",
        FLOODS["lists"],
        FLOODS["keys"],
        b'{"messages":[' + many(b"[]", MAX_CONTAINERS) + b',"' + b'\\"' * 1_900_000 + b'"]}',
    ],
    ids=["numbers", "texts", "keys", "containers", "lists flood", "keys flood", "escapes"],
)
def test_what_a_body_holds_up_is_bounded(body: bytes) -> None:
    """In processor time of this thread, which other processes do not add to; best of three."""

    def seconds() -> float:
        began_s = time.thread_time()
        with suppress(RequestError):
            parse_object(body)
        return time.thread_time() - began_s

    assert min(seconds() for _ in range(3)) < 0.1


@pytest.mark.parametrize("model", BODIES, ids=lambda model: model.__name__)
def test_unknown_names_cost_what_one_costs(model: type[BaseModel]) -> None:
    """As many as there may be: what is quadratic in them takes seconds. Best of three."""
    fields = parse_object(an_object(MAX_KEYS))

    def seconds() -> float:
        began_s = time.thread_time()
        with suppress(RequestError):
            validated(model, fields)
        return time.thread_time() - began_s

    assert min(seconds() for _ in range(3)) < 0.2


def test_there_is_one_place_that_parses() -> None:
    folder = Path(parse.__file__).parents[1]
    parsing = {"loads", "model_validate_json", "validate_json", "from_json"}
    found = {
        file.relative_to(folder).as_posix()
        for name in ("routes", "protocol")
        for file in (folder / name).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in parsing
    }
    assert found == {"protocol/parse.py"}
