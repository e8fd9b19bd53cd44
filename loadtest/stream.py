"""One streamed chat over a socket of its own; cooperative wherever gevent patched `socket`."""

import socket
import time
from collections.abc import Generator
from urllib.parse import urlsplit

from loadtest.contract import ContractError
from penstock.bench.sse import EventSplitter
from penstock.bench.wire import ResponseDecoder

BLOCK_BYTES = 65_536


def stream_events(
    url: str, body: bytes, *, headers: dict[str, str], timeout_s: float
) -> Generator[tuple[float, bytes]]:
    """POST `body`; yield (arrival on the clock of `time.perf_counter`, payload) of each event.

    Closing the iterator closes the connection, as a client that leaves does.

    Raises:
        ContractError: a status other than 200, or a body that is cut.
        OSError: no connection, or `timeout_s` without a byte.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    address = (parts.hostname, parts.port or 80)
    lines = [f"POST {parts.path} HTTP/1.1", f"host: {parts.netloc}", "connection: close"]
    lines += ["content-type: application/json", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    decoder, events, error_body = ResponseDecoder(), EventSplitter(), b""
    with socket.create_connection(address, timeout=timeout_s) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        while not decoder.complete:
            data = connection.recv(BLOCK_BYTES)
            now_s = time.perf_counter()
            if not data:
                decoder.feed_eof()
                if not decoder.complete:
                    raise ContractError("the server closed the connection")
                break
            piece = decoder.feed(data)
            if decoder.status == 200:
                for payload in events.feed(piece):
                    yield now_s, payload
            else:
                error_body += piece
    if decoder.status != 200:
        raise ContractError(f"HTTP {decoder.status}: {error_body[:200].decode('utf-8', 'replace')}")
