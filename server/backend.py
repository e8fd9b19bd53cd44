"""The engine as the server sees it: three verbs, so that it can sit anywhere.

Structural types: `AsyncEngine` satisfies them without knowing them. Importing this module does
not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from ..engine.requests.input_processor import InputProcessor
    from ..engine.requests.tokenizer import Tokenizer
    from ..engine.state.request import ChoiceDelta, Request, TokenLogprobs, Trace, Usage


class ModelInfo(Protocol):
    """What is served."""

    @property
    def id(self) -> str:
        """The name that requests use."""
        ...

    @property
    def created(self) -> int:
        """Unix time of loading, in seconds."""
        ...

    @property
    def max_length_tokens(self) -> int:
        """Prompt plus answer."""
        ...


class Adapter(Protocol):
    """An adapter that requests may name as their model."""

    @property
    def name(self) -> str:
        """Its name in requests."""
        ...

    @property
    def key(self) -> str:
        """What requests to the engine have as `adapter`."""
        ...

    @property
    def created(self) -> int:
        """Unix time of loading, in seconds."""
        ...


class Stats(Protocol):
    """A snapshot of the engine; totals only grow."""

    @property
    def running(self) -> int:
        """Sequences that take part in steps."""
        ...

    @property
    def waiting(self) -> int:
        """Sequences that wait for room."""
        ...

    @property
    def pages_in_use(self) -> int:
        """KV cache pages that live sequences hold."""
        ...

    @property
    def pages_total(self) -> int:
        """All KV cache pages."""
        ...

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens taken in since the start."""
        ...

    @property
    def generation_tokens(self) -> int:
        """Tokens generated since the start."""
        ...

    @property
    def prefix_queried_tokens(self) -> int:
        """Prompt tokens looked up in the prefix cache."""
        ...

    @property
    def prefix_hit_tokens(self) -> int:
        """Prompt tokens found there."""
        ...


class AnswerStream(Protocol):
    """One submitted request: an async iterator of `ChoiceDelta`, over when all choices ended.

    Iterating raises GenerationError where the request failed alone, EngineDeadError where the
    engine failed and UnavailableError where the server's shutdown ended the request.
    """

    @property
    def request(self) -> Request:
        """What was submitted."""
        ...

    @property
    def usage(self) -> Usage:
        """Live token counts."""
        ...

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        """Set before the first delta where they were asked for."""
        ...

    @property
    def trace(self) -> Trace | None:
        """The tree of a search; None: it is no search."""
        ...

    def __aiter__(self) -> AsyncIterator[ChoiceDelta]: ...

    def ready(self) -> list[ChoiceDelta]:
        """Further deltas that are there already; never waits."""
        ...

    def abort(self) -> None:
        """End the request and free what it holds; harmless where it has ended."""
        ...


class Backend(Protocol):
    """A loaded model that answers requests. All methods belong to the event loop."""

    @property
    def model(self) -> ModelInfo:
        """What is served."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Usable from any thread."""
        ...

    @property
    def input_processor(self) -> InputProcessor:
        """Usable from any thread."""
        ...

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """Those that requests may name, by name."""
        ...

    async def load_adapter(
        self, name: str, folder: Path, *, created: int, replace: bool = False
    ) -> Adapter:
        """Load an adapter; `replace`: in place of one of the same name.

        Raises:
            RequestError: it cannot be served.
        """
        ...

    def unload_adapter(self, name: str) -> None:
        """Serve an adapter no more.

        Raises:
            NotFoundError: there is none of this name.
        """
        ...

    def start(self) -> None:
        """Begin to take requests."""
        ...

    async def stop(self, drain_s: float) -> None:
        """Refuse new requests, wait for the running ones that long, abort the rest."""
        ...

    def submit(self, request: Request) -> AnswerStream:
        """Queue a request.

        Raises:
            OverloadedError: a queue bound is reached.
            UnavailableError: shutting down, or the engine has failed.
        """
        ...

    def stats(self) -> Stats:
        """A snapshot, cheap enough for every second."""
        ...

    def check_health(self) -> None:
        """Raise UnavailableError, with the reason, where requests cannot be served."""
        ...
