"""Messages between the server's process and the engine's: framed msgpack on a socket, no pickle.

A frame is four bytes of length, big-endian, and one message. Methods travel by name, with their
parameters as data, and the other side looks them up in its registry.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

import msgspec

from ...decoding.constraint.grammar import Grammar
from ...decoding.constraint.thinking import Thinking
from ...decoding.methods import Methods
from ...decoding.sampling import Sampling
from ...registry import Choice, Method, Registry
from ..loading.loader import ModelInfo
from ..state.messages import Abort, DropAdapter, Message, Release
from ..state.pictures import Picture
from ..state.request import Request, StepOutput
from ..state.stats import EngineStats

READ_BYTES: Final = 1 << 16
_LENGTH: Final = struct.Struct(">I")
Packed = dict[str, dict[str, Any]]
"""Parameters by method name."""

M = TypeVar("M", bound=Method)


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first message. `log_level`: lowest to send. `config`: EngineConfig as JSON."""

    log_level: int
    config: str


class Submitted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A `Request`: those of its fields that the engine needs."""

    id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    n: int
    stop_strings: tuple[str, ...]
    stop_token_ids: frozenset[int]
    logprobs: int | None
    prompt_logprobs: int | None
    owner: str
    weight: float
    priority: int
    cache_salt: str
    adapter: str
    methods: Packed
    policy: Packed
    contexts: tuple[tuple[int, ...], ...]
    combines: bool
    grammar: str | None
    thinking: Thinking | None
    dropped_thinking: Thinking | None
    pictures: tuple[Picture, ...]
    part_of: str | None
    ruled: bool
    scored_from: int
    answered: int
    retain: bool
    source: str | None


class Aborted(msgspec.Struct, frozen=True, tag=True):
    """An `Abort`."""

    request_id: str
    index: int | None


class Released(msgspec.Struct, frozen=True, tag=True):
    """A `Release`."""

    names: tuple[str, ...]


class LoadAdapter(msgspec.Struct, frozen=True, tag=True):
    """Load the adapter in this folder under this key."""

    key: str
    folder: str


class AdapterDropped(msgspec.Struct, frozen=True, tag=True):
    """A `DropAdapter`."""

    key: str


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Stop the engine and end the process."""


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model is loaded; what the server needs to know of it."""

    info: ModelInfo
    eos_token_ids: frozenset[int]
    sampling_defaults: dict[str, Any]
    stats: EngineStats


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The model cannot be served: the name of the error and its message."""

    error: str
    message: str


class AdapterLoaded(msgspec.Struct, frozen=True, tag=True):
    """The answer to `LoadAdapter`. `problem`: why it cannot be served; None: it can."""

    key: str
    problem: str | None


class Stepped(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The result of one step. `taken`: messages that the loop has taken since its start."""

    taken: int
    outputs: list[StepOutput]
    rows: int
    stats: EngineStats


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine has failed. `error`: name of the exception."""

    error: str


class Logged(msgspec.Struct, frozen=True, tag=True):
    """A log record."""

    level: int
    name: str
    text: str


ToEngine = Start | Submitted | Aborted | Released | LoadAdapter | AdapterDropped | Stop
FromEngine = Ready | Refused | Stepped | AdapterLoaded | Failed | Logged

_encoder = msgspec.msgpack.Encoder()
decode_to_engine: Callable[[bytes], ToEngine] = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine: Callable[[bytes], FromEngine] = msgspec.msgpack.Decoder(FromEngine).decode


def frame(message: ToEngine | FromEngine) -> bytes:
    """One message as bytes for the socket."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Splits a stream of bytes into message bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the bodies that `data` completes."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield body


def pack_message(message: Message) -> ToEngine:
    """Pack a message for the engine's process."""
    if isinstance(message, Abort):
        return Aborted(message.request_id, message.index)
    if isinstance(message, Release):
        return Released(message.names)
    if isinstance(message, DropAdapter):
        return AdapterDropped(message.key)
    return Submitted(
        **{
            name: getattr(message, name)
            for name in Submitted.__struct_fields__
            if name not in ("methods", "policy", "grammar")
        },
        methods=_pack(message.methods.chosen),
        policy=_pack([message.policy]),
        grammar=None if message.grammar is None else message.grammar.text,
    )


def unpack_request(
    message: Submitted,
    decoding: Registry[Any],
    kv_cache: Registry[Any],
    grammar: Grammar | None = None,
) -> Request:
    """The request that `pack_message` packed; `grammar`: its grammar, compiled."""
    fields = {name: getattr(message, name) for name in Submitted.__struct_fields__}
    fields["methods"] = Methods.of(_unpack(message.methods, decoding))
    (fields["policy"],) = _unpack(message.policy, kv_cache)
    fields["grammar"] = grammar
    return Request(**fields)


def _pack(choices: Iterable[Choice[Any]]) -> Packed:
    return {c.method.name: c.parameters.model_dump(mode="json", by_alias=True) for c in choices}


def _unpack(packed: Packed, registry: Registry[M]) -> Iterator[Choice[M]]:
    """Parameters were checked when packed; here they only regain their types."""
    for name, raw in packed.items():
        method = registry.methods[name]
        parameters = method.parameters.model_validate(raw, strict=False)
        yield Choice(method=method, parameters=parameters)
