"""The engine's own process: `python -m penstock.engine.transport.child FD`.

Reads the settings from the first message, loads the model, answers `Ready` or `Refused`, then runs
the loop until it is told to stop or the other end of the socket is closed.
"""

import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec
from transformers.utils import logging as transformers_logging

from ...errors import ConfigurationError
from ..build import Built, build_engine
from ..config import EngineConfig
from ..core.loop import EngineLoop
from ..state.messages import Inbox
from ..state.request import StepOutput
from . import wire
from .compiling import Compiling
from .sent_pictures import SentPictures

logger = logging.getLogger(__name__)

_GRACE_S = 10.0


class _Link:
    """The socket to the server; several threads may send."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: wire.FromEngine) -> None:
        """Send one message; dropped if the other end has closed, after which the reader exits."""
        data = wire.frame(message)
        with self._lock, suppress(OSError):
            self._connection.sendall(data)


class _LogToLink(logging.Handler):
    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = link
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._link.send(wire.Logged(record.levelno, record.name, self.format(record)))
        except Exception:
            self.handleError(record)


def main() -> int:
    """Serve one engine; returns the exit status."""
    # Signals to the whole process group of a terminal or service reach this process, too. It ends
    # when the server tells it to, or when the server's end of the socket closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    link = _Link(connection)
    frames = wire.Frames()
    start = _first(connection, frames)
    if start is None:
        return 0
    logging.basicConfig(level=logging.DEBUG, handlers=[_LogToLink(link)], force=True)
    logging.getLogger().setLevel(start.log_level)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    inbox = Inbox()
    built: Future[Built] = Future()
    reader = threading.Thread(
        target=_read, args=(connection, frames, built, inbox, link), name="reader", daemon=True
    )
    reader.start()
    try:
        ready = build_engine(EngineConfig.model_validate_json(start.config), time.monotonic)
    except ConfigurationError as error:
        link.send(wire.Refused(type(error).__name__, str(error)))
        return 1
    # What is loaded stays: exempt it from garbage collection between tokens.
    gc.collect()
    gc.freeze()
    built.set_result(ready)
    return _serve(ready, inbox, link)


def _serve(built: Built, inbox: Inbox, link: _Link) -> int:
    engine, loaded = built.engine, built.loaded
    link.send(
        wire.Ready(
            info=built.info,
            eos_token_ids=loaded.eos_token_ids,
            sampling_defaults=loaded.sampling_defaults,
            stats=engine.stats(),
        )
    )
    status = 0

    def stepped(outputs: list[StepOutput], rows: int) -> None:
        link.send(wire.Stepped(taken=loop.taken, outputs=outputs, rows=rows, stats=engine.stats()))

    def failed(name: str) -> None:
        nonlocal status
        status = 1
        link.send(wire.Failed(name))

    loop = EngineLoop(engine, inbox, time.monotonic, on_step=stepped, on_failure=failed)
    loop.run()
    return status


def _first(connection: socket.socket, frames: wire.Frames) -> wire.Start | None:
    """The first message; None: the other end has closed."""
    while data := connection.recv(wire.READ_BYTES):
        for body in frames.feed(data):
            message = wire.decode_to_engine(body)
            assert isinstance(message, wire.Start), "the first message starts"
            return message
    return None


def _load_adapter(built: Future[Built], message: wire.LoadAdapter, link: _Link) -> None:
    """Load an adapter, while steps go on, and answer."""
    problem = None
    try:
        built.result().engine.adapters.load(message.key, Path(message.folder))
    except ConfigurationError as error:
        problem = str(error)
    except Exception:
        logger.exception("an adapter cannot be loaded")
        problem = "the adapter cannot be loaded"
    link.send(wire.AdapterLoaded(message.key, problem))


def _read(
    connection: socket.socket,
    frames: wire.Frames,
    built: Future[Built],
    inbox: Inbox,
    link: _Link,
) -> None:
    """Pass messages on to the loop. Ends the loop, or the process, when the server ends."""
    compiling = Compiling(inbox, built)
    pictures = SentPictures()
    loading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapters")
    try:
        while data := connection.recv(wire.READ_BYTES):
            for body in frames.feed(data):
                message = wire.decode_to_engine(body)
                if isinstance(message, wire.Stop):
                    inbox.put(None)
                    return
                if isinstance(message, wire.Submitted) and message.pictures:
                    whole = pictures.received(message.pictures)
                    message = msgspec.structs.replace(message, pictures=whole)
                if isinstance(message, wire.LoadAdapter):
                    loading.submit(_load_adapter, built, message, link)
                elif not isinstance(message, wire.Start):
                    compiling.put(message)
    except BaseException:
        logger.exception("the engine's process cannot read what it is told")
    # The server is gone: finish the step, but do not wait for loading or for a step that hangs.
    inbox.put(None)
    if built.done():
        time.sleep(_GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
