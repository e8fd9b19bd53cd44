"""The engine's own process: `python -m penstock.engine.process FD`, started by `ProcessHost`.

Reads the settings as the first frame, loads the model, answers `Ready` or `Refused`, then runs the
loop until it is told to stop or the other end of the socket is closed.
"""

import gc
import logging
import signal
import socket
import sys
import threading
import time

from transformers.utils import logging as transformers_logging

from ..errors import ConfigurationError
from .build import Built, build_engine
from .config import EngineConfig
from .loop import Abort, EngineLoop, Inbox
from .request import StepOutput
from .wire import (
    Aborted,
    Failed,
    Frames,
    FromEngine,
    Logged,
    Ready,
    Refused,
    Stepped,
    Stop,
    decode_to_engine,
    frame,
    unpack_request,
)

logger = logging.getLogger(__name__)

_READ_BYTES = 1 << 16


class _Link:
    """The socket, for messages of several threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: FromEngine) -> None:
        """Send one message; once nobody listens it is dropped, and the reader ends the process."""
        data = frame(message)
        with self._lock:
            try:
                self._connection.sendall(data)
            except OSError:
                return


class _LogToLink(logging.Handler):
    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = link
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._link.send(Logged(record.levelno, record.name, self.format(record)))


def main() -> int:
    """Serve one engine; returns the exit status."""
    # A terminal's interrupt goes to all of its processes; this one ends when the server says so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    link = _Link(connection)
    frames = Frames()
    first = _first(connection, frames)
    if first is None:
        return 0
    logging.basicConfig(level=logging.DEBUG, handlers=[_LogToLink(link)], force=True)
    level, _, settings = first.partition(b" ")
    logging.getLogger().setLevel(int(level))
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        built = build_engine(EngineConfig.model_validate_json(settings), time.monotonic)
    except ConfigurationError as error:
        link.send(Refused(type(error).__name__, str(error)))
        return 1
    # What is loaded stays: the collector need not walk torch again and again between tokens.
    gc.collect()
    gc.freeze()
    engine, loaded = built.engine, built.loaded
    link.send(
        Ready(
            info=built.info,
            eos_token_ids=loaded.eos_token_ids,
            sampling_defaults=loaded.sampling_defaults,
            stats=engine.stats(),
        )
    )

    def stepped(outputs: list[StepOutput], rows: int) -> None:
        link.send(Stepped(outputs=outputs, rows=rows, stats=engine.stats()))

    inbox = Inbox()
    failed: list[str] = []

    def failure(name: str) -> None:
        failed.append(name)
        link.send(Failed(name))

    def read() -> None:
        try:
            _read(connection, frames, built, inbox)
        except Exception as error:  # noqa: BLE001, RUF100 - the thread's last words
            logger.exception("a message could not be read")
            failure(type(error).__name__)
        inbox.put(None)

    threading.Thread(target=read, name="reader", daemon=True).start()

    EngineLoop(engine, inbox, time.monotonic, on_step=stepped, on_failure=failure).run()
    return 1 if failed else 0


def _first(connection: socket.socket, frames: Frames) -> bytes | None:
    """The first frame's body; None: the other end has closed."""
    while data := connection.recv(_READ_BYTES):
        for body in frames.feed(data):
            return body
    return None


def _read(connection: socket.socket, frames: Frames, built: Built, inbox: Inbox) -> None:
    """Hand messages on to the loop, until the server ends."""
    intake = built.intake
    while True:
        try:
            data = connection.recv(_READ_BYTES)
        except OSError:
            data = b""
        if not data:
            return
        for body in frames.feed(data):
            message = decode_to_engine(body)
            if isinstance(message, Stop):
                return
            if isinstance(message, Aborted):
                inbox.put(Abort(request_id=message.request_id, index=message.index))
            else:
                inbox.put(unpack_request(message, intake.decoding, intake.kv_cache))


if __name__ == "__main__":
    sys.exit(main())
