"""A real HTTP server on a real socket that answers as a test's script says."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import orjson

DROP = object()
"""A step: cut the connection."""

Step = bytes | float | object
"""Bytes to write, seconds to wait, or DROP."""

Script = Callable[[dict[str, Any]], Sequence[Step]]
"""From a request's JSON body to the raw bytes, head included, and pauses of its answer."""

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(payload: dict[str, Any] | bytes) -> bytes:
    text = payload if isinstance(payload, bytes) else orjson.dumps(payload)
    return chunked(b"data: " + text + b"\n\n")


def token(text: str = " a", finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]})


def delta(content: str | None = None, finish_reason: str | None = None, **more: str) -> bytes:
    choice = {"index": 0, "delta": {"content": content, **more}, "finish_reason": finish_reason}
    return event({"choices": [choice]})


def usage(prompt_tokens: int, completion_tokens: int) -> bytes:
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return event({"choices": [], "usage": counts})


def plain(status: int, body: Any) -> bytes:
    text = body if isinstance(body, bytes) else orjson.dumps(body)
    head = f"HTTP/1.1 {status} Whatever\r\ncontent-length: {len(text)}\r\n\r\n"
    return head.encode() + text


def words_then_usage(body: dict[str, Any]) -> list[Step]:
    """A well-behaved completion: max_tokens words, prompt tokens = prompt words + 3."""
    count: int = body["max_tokens"]
    return [
        STREAM_HEAD,
        *([token()] * (count - 1)),
        token(finish_reason="length"),
        usage(len(body["prompt"].split()) + 3, count),
        event(b"[DONE]"),
        END,
    ]


class ScriptedServer:
    """Serves in a thread; remembers request bodies, headers, and when each step was written."""

    def __init__(self, script: Script = words_then_usage) -> None:
        self.script = script
        self.models: Any = {"data": [{"id": "first"}, {"id": "second"}]}
        self.metrics = b""
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.writes_s: list[list[float]] = []
        self.connections = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "ScriptedServer":
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    def answer_with(self, *steps: Step) -> None:
        """Answer every request with these steps."""

        def script(body: dict[str, Any]) -> Sequence[Step]:
            return steps

        self.script = script

    async def _stop(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while await self._answer(reader, writer):
                    pass
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self.heads.append(head)
        if head.startswith("GET"):
            writer.write(plain(200, self.metrics if "/metrics" in head else self.models))
            return True
        length = next(
            int(line.split(":")[1])
            for line in head.lower().split("\r\n")
            if line.startswith("content-length")
        )
        body: dict[str, Any] = orjson.loads(await reader.readexactly(length))
        self.bodies.append(body)
        writes_s: list[float] = []
        self.writes_s.append(writes_s)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            for step in self.script(body):
                if isinstance(step, bytes):
                    writes_s.append(time.perf_counter())
                    writer.write(step)
                    await writer.drain()
                elif isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    writer.transport.abort()
                    return False
        finally:
            self.in_flight -= 1
        return True
