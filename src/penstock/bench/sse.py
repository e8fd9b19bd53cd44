"""Server-sent events (SSE), as far as OpenAI-compatible servers use them."""

DONE = b"[DONE]"


class EventSplitter:
    """Turns pieces of an event stream into the payloads of its complete events.

    Pieces may be cut anywhere, even inside a character or between CR and LF. Comments and the
    fields `event`, `id` and `retry` are dropped; several `data` lines are joined by a newline, as
    the HTML standard says (9.2.6). A lone CR, which the standard also allows, does not end a line.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._lines: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next piece; return the payloads that it completes, in order."""
        lines = (self._tail + data).split(b"\n")
        self._tail = lines.pop()
        payloads: list[bytes] = []
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if line.startswith(b"data:"):
                start = 6 if line[5:6] == b" " else 5
                self._lines.append(line[start:])
            elif not line and self._lines:
                payloads.append(b"\n".join(self._lines))
                self._lines.clear()
        return payloads
