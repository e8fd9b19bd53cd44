"""A process that renders chat templates: `python -m penstock.engine.requests.chat.worker FD`.

Templates may loop, recurse and grow without bound: the kernel ends the process when a rendering's
CPU time is used up, and refuses memory beyond its limit. The process ends when its socket closes.
"""

import re
import resource
import secrets
import signal
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jinja2

from . import wire
from .environment import TracingEnvironment
from .traced import concatenate, said, spans_of, untraced

_MAX_CHARACTERS = 2**24
"""Limit of a rendered text, plus four characters for each byte of the request."""

_MEMORY_PER_BYTE = 64
_SMALL_BYTES = 2**16
_STATM = Path("/proc/self/statm")
_REASON_CHARACTERS = 200


class _RefusalError(Exception):
    """The rendering failed for a reason that the caller may be told."""


def main() -> int:
    """Render chats until the socket closes; returns the exit status."""
    # Signals to the whole process group of a terminal or service are for the serving process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    connection = socket.socket(fileno=int(sys.argv[1]))
    first = wire.receive(connection)
    if first is None:
        return 0
    start = wire.decode_start(first)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    environment = TracingEnvironment()
    _limit_memory(start.memory_bytes)
    compiled: dict[int, jinja2.Template] = {}
    while (body := wire.receive(connection)) is not None:
        if len(body) > _SMALL_BYTES:
            _limit_memory(start.memory_bytes + _MEMORY_PER_BYTE * len(body))
        signal.setitimer(signal.ITIMER_PROF, start.cpu_s)
        reply: wire.Rendered | wire.Refused
        try:
            request = wire.decode_render(body)
            template = compiled.get(request.template)
            if template is None:
                source = start.sources[request.template]
                template = compiled[request.template] = environment.from_string(source)
            text = _render(template, request, start.constants, _MAX_CHARACTERS + 4 * len(body))
            reply = wire.Rendered(untraced(text), spans_of(text))
        except Exception as error:
            reply = wire.Refused(_reason(error))
        signal.setitimer(signal.ITIMER_PROF, 0)
        try:
            wire.send(connection, wire.encode(reply))
        except OSError:
            return 0
    return 0


def _limit_memory(more_bytes: int) -> None:
    """Limit the address space to `more_bytes` above the present size."""
    if not _STATM.exists():  # not Linux
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    now_bytes = int(_STATM.read_text("ascii").split()[0]) * resource.getpagesize()
    limit = now_bytes + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


def _render(
    template: jinja2.Template,
    request: wire.Render,
    constants: dict[str, str],
    most: int,
) -> str:
    messages = [_message(message) for message in request.messages]
    end = whole = ""
    if request.continue_final_message:
        end = secrets.token_hex(16)
        whole = _mark_end(messages[-1], end + " ")
    values = {
        **constants,
        "tools": None,
        "documents": None,
        **{name: said(value) for name, value in request.variables.items()},
        "messages": messages,
        "add_generation_prompt": request.add_generation_prompt,
    }
    pieces = template.root_render_func(template.new_context(values))
    text = concatenate(_bounded(pieces, most))
    if not end:
        return text
    at = text.rfind(end)
    if at < 0 or whole.strip() not in text:
        raise _RefusalError("it changes the final message, which therefore cannot be continued")
    # If the space after the mark is kept, the template does not trim messages.
    kept = text[at : at + len(end) + 1] == end + " "
    return text[:at] if kept else text[:at].rstrip()


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message with everything marked as the caller's, except a role that is an identifier."""
    return {
        key: value if key == "role" and str(value).isidentifier() else said(value)
        for key, value in message.items()
        if value is not None
    }


def _mark_end(message: dict[str, Any], mark: str) -> str:
    """Put the mark after the message's text; returns the text without it."""
    content = message.get("content")
    if isinstance(content, list):
        for part in reversed(content):
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                text = part["text"]
                part["text"] = text + mark
                return text
    if not isinstance(content, str):
        raise _RefusalError("the final message has no text to continue")
    message["content"] = content + mark
    return content


def _bounded(pieces: Iterable[str], most: int) -> Iterator[str]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > most:
            raise _RefusalError(f"its text is longer than {most} characters")
        yield piece


def _reason(error: Exception) -> str:
    """A reason safe to show: the template's message or the error's type, never an address."""
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    if isinstance(error, RecursionError):
        return "it calls itself too often"
    if not isinstance(error, jinja2.TemplateError | ArithmeticError | _RefusalError):
        return type(error).__name__
    told = " ".join(str(error).split())
    return re.sub(r" at 0x[0-9a-fA-F]+", "", told)[:_REASON_CHARACTERS] or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
