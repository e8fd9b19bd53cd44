"""An engine in a process of its own, behind the same interface as one in a thread.

Steps and HTTP then do not share an interpreter lock. The two processes talk over a socket
(`wire.py`), and the engine's process ends when its socket closes.
"""

import asyncio
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...errors import EXITS, ConfigurationError, EngineDeadError, UnsupportedModelError
from ..build import make_input_processor
from ..config import EngineConfig
from ..loading.loader import load_tokenizer
from ..loading.picture_part import load_picture_processor
from ..requests.input_processor import InputProcessor
from ..state.messages import Message
from ..state.request import Request
from ..state.stats import EngineStats
from . import wire
from .host import JOIN_S, OnFailure, OnStep
from .sent_pictures import SentPictures

logger = logging.getLogger(__name__)


class ProcessHost:
    """Starts the engine's process and talks to it; an `EngineHost`."""

    def __init__(self, config: EngineConfig, clock: Callable[[], float]) -> None:
        """Start the process and wait until its model is loaded.

        Raises:
            ConfigurationError: settings or model cannot be served.
            EngineDeadError: the process ended before it was ready.
        """
        ours, theirs = socket.socketpair()
        self._clock = clock
        self._frames = wire.Frames()
        self._process = subprocess.Popen(
            # -P: a folder `kernels` in the working directory must not shadow the library.
            [sys.executable, "-P", "-m", "penstock.engine.transport.child", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._connection = ours
        level = logging.getLogger().getEffectiveLevel()
        try:
            ours.sendall(wire.frame(wire.Start(level, config.model_dump_json())))
            self.ready = self._wait_until_ready()
        except BaseException:
            ours.close()  # which ends the process
            self._process.wait()
            raise
        self._stats = self.ready.stats
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._busy_since_s: float | None = None
        self._sent = 0
        self._sent_pictures = SentPictures()
        self._stopping = False
        self._failed = False
        self._connecting: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._adapters: dict[str, asyncio.Future[str | None]] = {}

    def input_processor(self, config: EngineConfig) -> InputProcessor:
        """The input processor for the server's process: tokenizer, limits and registries."""
        ready = self.ready
        processor = None
        if ready.info.pictures_unsupported_reason is None:
            found = load_picture_processor(config)
            processor = None if isinstance(found, str) else found
        return make_input_processor(
            config,
            pages=ready.stats.pages_total,
            max_running=ready.stats.max_running,
            tokenizer=load_tokenizer(config, ready.eos_token_ids),
            info=ready.info,
            eos_token_ids=ready.eos_token_ids,
            sampling_defaults=ready.sampling_defaults,
            picture_processor=processor,
        )

    def start(self, on_step: OnStep, on_failure: OnFailure) -> None:
        """See `EngineHost`."""
        self._on_step, self._on_failure = on_step, on_failure
        self._connecting = asyncio.create_task(self._connect())

    def send(self, message: Message) -> None:
        """See `EngineHost`."""
        if isinstance(message, Request) and message.pictures:
            message = replace(message, pictures=self._sent_pictures.to_send(message.pictures))
        packed = wire.pack_message(message)
        if self._busy_since_s is None:
            self._busy_since_s = self._clock()
        self._sent += 1
        self._write(packed)

    async def load_adapter(self, key: str, folder: Path) -> None:
        """See `EngineHost`."""
        answer = asyncio.get_running_loop().create_future()
        self._adapters[key] = answer
        try:
            self._write(wire.LoadAdapter(key, str(folder)))
            problem = await answer
        finally:
            del self._adapters[key]
        if problem is not None:
            raise ConfigurationError(problem)

    async def stop(self) -> None:
        """See `EngineHost`."""
        self._stopping = True
        if self._connecting is None:
            self._connection.close()  # the process ends with it
        else:
            await asyncio.shield(self._connecting)
            self._write(wire.Stop())
        try:
            await asyncio.wait_for(self._ended(), JOIN_S)
        except TimeoutError:
            logger.warning("the engine's process did not end; it is killed")
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def stats(self) -> EngineStats:
        """See `EngineHost`."""
        return self._stats

    def busy_since_s(self) -> float | None:
        """See `EngineHost`: time of the last step, or of the first message sent while idle."""
        return self._busy_since_s

    def received(self, data: bytes) -> None:
        """Handle bytes from the process."""
        for body in self._frames.feed(data):
            self._handle(wire.decode_from_engine(body))

    def disconnected(self) -> None:
        """Handle the end of the connection: the process has ended."""
        self._gone.set()
        self._process.poll()
        for asked in self._adapters.values():
            if not asked.done():
                asked.set_exception(EngineDeadError("the engine's process has ended"))
        if not self._stopping:
            self._fail("its process has ended")

    async def _ended(self) -> None:
        if self._connecting is not None:
            await self._gone.wait()  # by then its last message has been read
        await asyncio.to_thread(self._process.wait)

    def _handle(self, message: wire.FromEngine) -> None:
        if isinstance(message, wire.Stepped):
            self._stats = message.stats
            idle = not (message.stats.running or message.stats.waiting)
            done = idle and message.taken == self._sent
            self._busy_since_s = None if done else self._clock()
            try:
                self._on_step(message.outputs, message.rows)
            except EXITS:
                raise
            except BaseException:  # as asyncio does with callbacks from a thread
                logger.exception("a step's outputs could not be delivered")
        elif isinstance(message, wire.AdapterLoaded):
            asked = self._adapters.get(message.key)
            if asked is not None and not asked.done():
                asked.set_result(message.problem)
        elif isinstance(message, wire.Failed):
            self._fail(message.error)
        elif isinstance(message, wire.Logged):
            _log(message)

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            self._busy_since_s = None
            self._stats = replace(self._stats, running=0, waiting=0, pages_in_use=0)
            self._on_failure(reason)

    def _write(self, message: wire.ToEngine) -> None:
        data = wire.frame(message)
        if self._transport is None:
            self._unsent.append(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    async def _connect(self) -> None:
        events = asyncio.get_running_loop()
        self._connection.setblocking(False)
        self._transport, _ = await events.create_unix_connection(
            lambda: _Protocol(self), sock=self._connection
        )
        for data in self._unsent:
            self._transport.write(data)
        self._unsent.clear()

    def _wait_until_ready(self) -> wire.Ready:
        while data := self._connection.recv(wire.READ_BYTES):
            for body in self._frames.feed(data):
                message = wire.decode_from_engine(body)
                if isinstance(message, wire.Ready):
                    return message
                if isinstance(message, wire.Logged):
                    _log(message)
                if isinstance(message, wire.Refused):
                    raise _refusal(message)
        raise EngineDeadError(
            f"the engine's process {_end(self._process.wait())} before it was ready"
        )


class _Protocol(asyncio.Protocol):
    """Hands the socket's events to the host."""

    def __init__(self, host: ProcessHost) -> None:
        self._host = host

    def data_received(self, data: bytes) -> None:
        self._host.received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._host.disconnected()


def _log(message: wire.Logged) -> None:
    logging.getLogger(message.name).log(message.level, "%s", message.text)


def _end(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name
    why = "; the system may be out of memory" if name == "SIGKILL" else ""
    return f"was ended by {name}{why}"


def _refusal(message: wire.Refused) -> ConfigurationError:
    kinds = {kind.__name__: kind for kind in (ConfigurationError, UnsupportedModelError)}
    return kinds.get(message.error, ConfigurationError)(message.message)
