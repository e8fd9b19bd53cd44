"""A request on its way through the server: what was asked, and what the engine will get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ...engine.state.request import (
        ChoiceDelta,
        Request,
        TokenLogprobs,
        Trace,
        Usage,
    )
    from ..conventions.reading import Reading
    from .echo import Echo
    from .generation import GenerationBody
    from .spelling import Spelling

B = TypeVar("B", bound="GenerationBody")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Generic[B]):
    """One HTTP request, checked and tokenised.

    `id`: of the answer. `created`: Unix time in seconds. `model`: the served name.
    `requests`: one for each prompt of the batch.
    `echo`: what stands before the answers to each prompt where that is asked for, else empty.
    `reading`: how to find thoughts and calls of tools in the answers; None: they are text.
    `ignored`: names of the fields without any effect.
    """

    id: str
    created: int
    model: str
    body: B
    requests: tuple[Request, ...]
    spelling: Spelling
    echo: tuple[Echo, ...] = ()
    reading: Reading | None = None
    ignored: tuple[str, ...] = ()


class Answered(Protocol):
    """What an answer is built from, once a generation has begun."""

    @property
    def usage(self) -> Usage:
        """Token counts."""
        ...

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        """Where they were asked for."""
        ...

    @property
    def trace(self) -> Trace | None:
        """The tree, where there is one."""
        ...


class StreamWriter(Protocol):
    """Turns deltas into server-sent events; each method returns whole events, or nothing."""

    def opening(self) -> bytes:
        """Events that come before all text."""
        ...

    def events(self, prompt: int, delta: ChoiceDelta, answered: Answered) -> bytes:
        """Events of one delta of the batch's prompt number `prompt`."""
        ...

    def closing(self, answered: Sequence[Answered]) -> bytes:
        """Events that come after all text, `[DONE]` not included."""
        ...


def usages(answered: Iterable[Answered]) -> list[Usage]:
    """The counts of each prompt."""
    return [one.usage for one in answered]
