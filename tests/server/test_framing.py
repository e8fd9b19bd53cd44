"""Requests whose end two readers may see in different places.

The kind (request smuggling): where a proxy in front believes one length and this server another,
the rest of one caller's body becomes the next caller's request. Whatever is ambiguous is refused,
and the connection is closed, so that nothing behind it is read as a request.
"""

import socket
from collections.abc import Iterator

import pytest

from tests.server.scripted import Script, ScriptedServer, scripted, text_deltas

POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = b'{"prompt":"x"}'
CHUNKED = b"e\r\n" + BODY + b"\r\n0\r\n\r\n"
SMUGGLED = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
TE = b"Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def door() -> Iterator[ScriptedServer]:
    with scripted(Script(deltas=text_deltas("x"))) as server:
        yield server


def exchange(server: ScriptedServer, request: bytes) -> bytes:
    """Everything that comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        try:
            while piece := connection.recv(65_536):
                answer += piece
        except ConnectionResetError:
            pass  # it was closed before all of this was read
    return answer


AMBIGUOUS = {
    "length and chunks": POST + LENGTH + TE + b"\r\n" + CHUNKED,
    "chunks and length": POST + TE + LENGTH + b"\r\n" + CHUNKED,
    "chunks and no length at all": POST + TE + b"Content-Length: 0\r\n\r\n" + CHUNKED,
    "two lengths": POST + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY,
    "two lengths in one": POST + b"Content-Length: 14, 3\r\n\r\n" + BODY,
    "length with a sign": POST + b"Content-Length: +14\r\n\r\n" + BODY,
    "length in hexadecimal": POST + b"Content-Length: 0xe\r\n\r\n" + BODY,
    "length with a line": POST + b"Content-Length: 1_4\r\n\r\n" + BODY,
    "empty length": POST + b"Content-Length: \r\n\r\n" + BODY,
    "chunks in HTTP/1.0": POST.replace(b"1.1", b"1.0") + TE + b"\r\n" + CHUNKED,
    "chunks twice": POST + TE + TE + b"\r\n" + CHUNKED,
    "chunks and identity": POST + b"Transfer-Encoding: identity, chunked\r\n\r\n" + CHUNKED,
    "chunks, then gzip": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + CHUNKED,
    "gzip": POST + b"Transfer-Encoding: gzip\r\n\r\n" + CHUNKED,
    "chunks misspelt": POST + b"Transfer-Encoding: xchunked\r\n" + LENGTH + b"\r\n" + CHUNKED,
    "space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKED,
    "tab before the colon": POST + b"Content-Length\t: 14\r\n\r\n" + BODY,
    "space before the first name": POST.replace(b"\r\n", b"\r\n ", 1) + LENGTH + b"\r\n" + BODY,
    "return within a value": POST + b"A: x\rContent-Length: 3\r\n" + LENGTH + b"\r\n" + BODY,
    "zero byte within a value": POST + b"A: x\x00\r\n" + LENGTH + b"\r\n" + BODY,
    "no name": POST + b": x\r\n" + LENGTH + b"\r\n" + BODY,
    "two hosts": POST + b"Host: localhost\r\n" + LENGTH + b"\r\n" + BODY,
    "another host in the target": POST.replace(b" /", b" http://evil.example/")
    + LENGTH
    + b"\r\n"
    + BODY,
    "chunk size with a sign": POST + TE + b"\r\n" + b"+" + CHUNKED,
    "chunk size with 0x": POST + TE + b"\r\n" + b"0x" + CHUNKED,
    "chunk size beyond all": POST + TE + b"\r\n" + b"f" * 30 + b"\r\n",
    "chunk longer than it says": POST + TE + b"\r\n" + CHUNKED.replace(b"e\r\n", b"d\r\n", 1),
    "chunk ended by a bare line feed": POST + TE + b"\r\n" + CHUNKED.replace(b"}\r\n", b"}\n\n"),
    "line feed in a chunk extension": POST + TE + b"\r\n" + CHUNKED.replace(b"e\r", b"e;a\nb\r", 1),
    "chunk size ended by a bare line feed": POST + TE + b"\r\n" + b"e\n" + BODY + b"\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("request_", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_ambiguous_requests_are_refused_and_end_the_connection(
    door: ScriptedServer, request_: bytes
) -> None:
    answer = exchange(door, request_ + SMUGGLED)
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]
    assert b"connection: close" in answer.lower()
    assert b'"code":"invalid_http"' in answer
    assert answer.count(b"HTTP/1.1 ") == 1


PLAIN = {
    "length": POST + LENGTH + b"\r\n" + BODY,
    "same length twice": POST + LENGTH + LENGTH + b"\r\n" + BODY,
    "chunks": POST + TE + b"\r\n" + CHUNKED,
    "chunks in capitals": POST + b"Transfer-Encoding: Chunked\r\n\r\n" + CHUNKED,
    "chunk extension": POST + TE + b"\r\n" + CHUNKED.replace(b"e\r", b'e;a="b"\r', 1),
    "trailer": POST + TE + b"\r\n" + CHUNKED[:-2] + b"A: b\r\n\r\n",
    "folded value": POST + b"A: x\r\n y\r\n" + LENGTH + b"\r\n" + BODY,
    "target of a proxy": POST.replace(b" /", b" http://localhost/") + LENGTH + b"\r\n" + BODY,
}


@pytest.mark.parametrize("request_", PLAIN.values(), ids=PLAIN.keys())
def test_plain_requests_are_served_one_after_the_other(
    door: ScriptedServer, request_: bytes
) -> None:
    answer = exchange(door, request_ * 2 + SMUGGLED[:-2] + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize(
    ("size", "number", "status"),
    [(1, 255, b"200"), (1, 256, b"400"), (63, 5000, b"400"), (64, 5000, b"200")],
)
def test_bodies_of_tiny_chunks_are_bounded(
    door: ScriptedServer, size: int, number: int, status: bytes
) -> None:
    """Each chunk costs the loop as much as a chunk does, however little it holds."""
    chunk = b"%x\r\n" % size + b" " * size + b"\r\n"
    head = POST + TE + b"Connection: close\r\n\r\n"
    answer = exchange(door, head + chunk * number + CHUNKED)
    assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]


def test_targets_of_a_proxy_are_the_path_alone(door: ScriptedServer) -> None:
    for target, status in [
        (b"http://localhost/version", b"200"),
        (b"HTTP://LOCALHOST/v1/models?x=http://y/", b"200"),
        (b"http://localhost", b"400"),  # the playground, which is not there yet
        (b"http://evil.example/version", b"400"),
        (b"http://localhost@evil.example/version", b"400"),
        (b"*", b"404"),
    ]:
        head = b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert exchange(door, head).startswith(b"HTTP/1.1 " + status), target


def test_refusals_in_the_middle_of_a_body_leave_no_request_behind(door: ScriptedServer) -> None:
    """The rest of a refused body is no request, whatever it says."""
    head = POST.replace(b"application/json", b"text/plain")
    whole = head + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED
    answer = exchange(door, whole + SMUGGLED[:-2] + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 415 ") == 1
    assert answer.count(b"HTTP/1.1 200 ") == 1
