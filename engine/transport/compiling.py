"""Messages to the loop of the engine's process: none waits for another's grammar to compile."""

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from ...decoding.constraint.grammar import Grammar
from ..build import Built
from ..state.messages import Abort, DropAdapter, Inbox, Release
from . import wire

logger = logging.getLogger(__name__)


class Compiling:
    """Puts messages into the inbox; those without a grammar wait for no grammar of another.

    `built`: the engine, once it is loaded. Compiling may take most of a second, so a thread of its
    own does it; what is said of a request meanwhile follows it.
    """

    def __init__(self, inbox: Inbox, built: Future[Built]) -> None:
        self._inbox = inbox
        self._built = built
        self._followers: dict[str, list[Abort]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammars")

    def put(
        self, message: wire.Submitted | wire.Aborted | wire.Released | wire.AdapterDropped
    ) -> None:
        """Pass a message on, now or once the grammar of its request is compiled."""
        if isinstance(message, wire.Released):
            self._inbox.put(Release(names=message.names))
        elif isinstance(message, wire.AdapterDropped):
            self._inbox.put(DropAdapter(key=message.key))
        elif isinstance(message, wire.Aborted):
            abort = Abort(request_id=message.request_id, index=message.index)
            with self._lock:
                if message.request_id in self._followers:
                    self._followers[message.request_id].append(abort)
                    return
            self._inbox.put(abort)
        elif message.grammar is None:
            self._submit(message, None)
        else:
            with self._lock:
                self._followers[message.id] = []
            self._pool.submit(self._compile, message, message.grammar)

    def _compile(self, message: wire.Submitted, text: str) -> None:
        try:
            grammar = self._built.result().input_processor.grammars.compile(text)
        except Exception:
            # The server has compiled it before; the engine ends the request.
            logger.exception("the grammar of request %s cannot be compiled", message.id)
            grammar = Grammar(text=text, beginning=None)
        with self._lock:
            self._submit(message, grammar)
            for abort in self._followers.pop(message.id):
                self._inbox.put(abort)

    def _submit(self, message: wire.Submitted, grammar: Grammar | None) -> None:
        processor = self._built.result().input_processor
        self._inbox.put(
            wire.unpack_request(message, processor.decoding, processor.kv_cache, grammar)
        )
