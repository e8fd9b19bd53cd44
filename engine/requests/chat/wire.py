"""Messages between the serving process and a rendering process: framed msgpack on a socket.

A frame is eight bytes of length, big-endian, and one message.
"""

import socket
import struct
from typing import Any, Final

import msgspec

_LENGTH: Final = struct.Struct(">Q")


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """The first message. `constants`: the tokenizer's special tokens by name (`bos_token`).

    `cpu_s`: limit of one rendering. `memory_bytes`: limit, plus a share for a rendering's own data.
    """

    sources: tuple[str, ...]
    constants: dict[str, str]
    cpu_s: float
    memory_bytes: int


class Render(msgspec.Struct, frozen=True, kw_only=True):
    """A chat to render. `template`: index of its source. `variables`: given by the caller."""

    template: int
    messages: list[dict[str, Any]]
    variables: dict[str, Any]
    add_generation_prompt: bool
    continue_final_message: bool


class Rendered(msgspec.Struct, frozen=True, tag=True):
    """The text. `said`: (start, end) of the characters that the caller wrote, ascending."""

    text: str
    said: tuple[tuple[int, int], ...]


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Why there is no text, in the template's own words where it gives a reason.

    `ended`: the process that rendered has ended.
    """

    reason: str
    ended: bool = False


encode: Final = msgspec.msgpack.encode
decode_start: Final = msgspec.msgpack.Decoder(Start).decode
decode_render: Final = msgspec.msgpack.Decoder(Render).decode
decode_reply: Final = msgspec.msgpack.Decoder(Rendered | Refused).decode


def send(connection: socket.socket, body: bytes) -> None:
    """Send a message.

    Raises:
        OSError: the other end is gone.
    """
    connection.sendall(_LENGTH.pack(len(body)) + body)


def receive(connection: socket.socket) -> bytes | None:
    """The next message; None: the other end is gone.

    Raises:
        TimeoutError: it took longer than the socket may wait.
    """
    head = _read(connection, _LENGTH.size)
    return None if head is None else _read(connection, _LENGTH.unpack(head)[0])


def _read(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    view = memoryview(data)
    at = 0
    while at < size:
        try:
            count = connection.recv_into(view[at:])
        except TimeoutError:
            raise
        except OSError:
            return None
        if count == 0:
            return None
        at += count
    return bytes(data)
