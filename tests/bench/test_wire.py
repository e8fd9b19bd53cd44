"""Decoders must not care where the network cuts: every response is fed at each possible cut."""

import pytest

from penstock.bench.sse import EventSplitter
from penstock.bench.wire import ProtocolError, ResponseDecoder
from tests.bench.scripted import END, STREAM_HEAD, chunked

CHUNKED = STREAM_HEAD + chunked(b"data: \xc3\xa9\n") + chunked(b"\n") + END
BODY = b"data: \xc3\xa9\n\n"
CASES = {
    "chunked": (CHUNKED, BODY, True),
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", True),
    "empty": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"", True),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "until close": (b"HTTP/1.1 200 OK\r\n\r\nhello", b"hello", False),
    "close": (
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi",
        b"hi",
        False,
    ),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED, BODY, True),
    "extension and trailer": (
        STREAM_HEAD + b"2;x=y\r\nhi\r\n0\r\ndigest: z\r\n\r\n",
        b"hi",
        True,
    ),
}


@pytest.mark.parametrize(("raw", "body", "keep_alive"), CASES.values(), ids=CASES.keys())
def test_response_cut_anywhere(raw: bytes, body: bytes, keep_alive: bool) -> None:
    cuts = [range(0, len(raw), size) for size in (1, 2, 3)]
    pieces = [[raw[i : i + places.step] for i in places] for places in cuts]
    pieces += [[raw[:cut], raw[cut:]] for cut in range(len(raw) + 1)]
    for split in pieces:
        decoder = ResponseDecoder()
        assert b"".join(map(decoder.feed, split)) == body
        decoder.feed_eof()
        assert decoder.complete
        assert decoder.keep_alive is keep_alive


@pytest.mark.parametrize("raw", [CHUNKED, CASES["length"][0]], ids=["chunked", "length"])
def test_cut_body_is_not_complete(raw: bytes) -> None:
    for cut in range(len(raw)):
        decoder = ResponseDecoder()
        decoder.feed(raw[:cut])
        decoder.feed_eof()
        assert not decoder.complete


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 ok\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        STREAM_HEAD + b"xyz\r\n",
        b"a" * 70_000,
    ],
    ids=["ssh", "no status", "length", "chunk size", "endless head"],
)
def test_not_http(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        ResponseDecoder().feed(raw)


STREAM = (
    b': a comment\n\ndata: {"a": 1}\n\nevent: x\ndata:two\ndata: lines\n\n'
    b"data: \xe2\x82\xac\r\n\r\ndata: [DONE]\n\ndata: unfinished"
)
PAYLOADS = [b'{"a": 1}', b"two\nlines", b"\xe2\x82\xac", b"[DONE]"]


@pytest.mark.parametrize("size", range(1, len(STREAM) + 1))
def test_events_cut_anywhere(size: int) -> None:
    splitter = EventSplitter()
    pieces = [STREAM[i : i + size] for i in range(0, len(STREAM), size)]
    assert [payload for piece in pieces for payload in splitter.feed(piece)] == PAYLOADS
