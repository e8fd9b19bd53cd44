"""A pool of processes that render chat templates, started on demand, killed to end a rendering."""

import signal
import socket
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from typing import Final

from ..caller import CALLER, CallerLeftError, JobCaller
from . import wire

_NO_TIME = -int(signal.SIGPROF)
_WALL_TIMES: Final = 15.0
"""Wall time of a rendering, in multiples of its CPU time: a process may be stopped or starved."""


class Workers:
    """At most `limit` processes, each rendering one chat at a time. Thread-safe."""

    def __init__(self, start: wire.Start, *, limit: int) -> None:
        self._start = start
        self._limit = limit
        self._changed = threading.Condition()
        self._idle: list[_Worker] = []
        self._busy = 0
        self.close = weakref.finalize(self, _end, self._idle)

    def render(self, request: wire.Render) -> wire.Rendered | wire.Refused:
        """Render in a process.

        Raises:
            CallerLeftError: the caller left, and the rendering was ended.
        """
        body = wire.encode(request)
        caller = CALLER.get()
        rendering = _Rendering(self._changed)
        with caller.elsewhere(rendering.stop):
            worker = self._take(caller)
            if worker is None:
                raise CallerLeftError
            rendering.begin(worker, stopped=caller.left)
            reply = worker.render(body)
            stopped = rendering.end()
            keep = reply is not None and not stopped
            self._give_back(worker, keep=keep)
        status = 0 if keep else worker.status()
        if reply is not None:
            return wire.decode_reply(reply)
        if stopped:
            raise CallerLeftError
        if status == _NO_TIME or worker.timed_out:
            return wire.Refused(f"it takes longer than {self._start.cpu_s:g} s", ended=True)
        return wire.Refused("it ends its process", ended=True)

    def _take(self, caller: JobCaller) -> "_Worker | None":
        with self._changed:
            self._changed.wait_for(lambda: caller.left or self._busy < self._limit)
            if caller.left:
                return None
            self._busy += 1
            while self._idle:
                worker = self._idle.pop()
                if worker.is_alive:
                    return worker
                worker.status()
        try:
            return _Worker(self._start)
        except BaseException:
            self._give_back(None, keep=False)
            raise

    def _give_back(self, worker: "_Worker | None", *, keep: bool) -> None:
        with self._changed:
            self._busy -= 1
            if keep and worker is not None:
                self._idle.append(worker)
            if not self.close.alive:  # closed in the meantime
                _end(self._idle)
            self._changed.notify_all()


class _Rendering:
    """Lets one rendering be stopped, without touching the next one in the same process."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._worker: _Worker | None = None
        self._stopped = False

    def begin(self, worker: "_Worker", *, stopped: bool) -> None:
        """The rendering now runs in `worker`."""
        with self._changed:
            self._worker = worker
        if stopped:
            self.stop()

    def stop(self) -> None:
        """Kill the process if it renders, and wake a waiting `_take`."""
        with self._changed:
            if self._worker is not None:
                self._stopped = True
                self._worker.kill()
            self._changed.notify_all()

    def end(self) -> bool:
        """The rendering has ended; returns whether `stop` ended it."""
        with self._changed:
            self._worker = None
            return self._stopped


class _Worker:
    """One process and its socket."""

    def __init__(self, start: wire.Start) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                # -P: a folder `kernels` in the working directory must not shadow a library.
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "penstock.engine.requests.chat.worker",
                    str(theirs.fileno()),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        self._connection = ours
        self.timed_out = False
        ours.settimeout(_WALL_TIMES * start.cpu_s)
        with suppress(OSError):  # a process that failed to start is noticed when it should answer
            wire.send(ours, wire.encode(start))

    def render(self, body: bytes) -> bytes | None:
        """The reply; None: the process has ended, perhaps because it took too long."""
        try:
            wire.send(self._connection, body)
            return wire.receive(self._connection)
        except TimeoutError:
            self.timed_out = True
            self.kill()
        except OSError:
            pass
        return None

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def status(self) -> int:
        """Close the socket and wait for the exit status."""
        self._connection.close()
        return self._process.wait()

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()

    def end(self) -> None:
        """Kill the process and wait for its end."""
        self._process.kill()
        self.status()


def _end(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().end()
