"""The interface of controllers: which sequences live."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..base import DecodingMethod, P, Slot

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from ..constraint.fields import StructuredOutputs
    from .budget import Budget
    from .operations import Operation, Outcome, State

TraceLevel = Literal["none", "summary", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchLimits:
    """The server's limits for searches. `budget`: the server's own, every field set.

    `evaluators`: names that `Evaluate` may use.
    """

    budget: Budget
    evaluators: frozenset[str] = frozenset()


class SearchContext(Protocol):
    """A request as its controller sees it."""

    @property
    def problem(self) -> str:
        """The prompt's text; in a chat, the user's last message."""
        ...

    @property
    def prompt(self) -> State:
        """The request's own prompt, ready to be continued."""
        ...

    @property
    def n(self) -> int:
        """How many answers the request asks for."""
        ...

    @property
    def seed(self) -> int:
        """Seed for random choices that the controller makes itself."""
        ...

    @property
    def max_tokens(self) -> int | None:
        """The limit of one generation, if the caller has set it."""
        ...

    @property
    def answer_tokens(self) -> int:
        """How many tokens an answer may have."""
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        ...

    @property
    def budget(self) -> Budget:
        """Every field set. Controllers keep to `thoughts`; the engine enforces the rest."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer, end-of-text tokens included."""
        ...

    @property
    def min_tokens(self) -> int:
        """Tokens before which nothing ends an answer; rules enforce it, except for `stop`."""
        ...

    def ask(self, text: str) -> State:
        """A prompt that asks the model `text` in place of the problem.

        The chat template formats it if the model has one; in a chat it follows the earlier turns.
        """
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a text that continues another one; no special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        ...


class Controller(DecodingMethod[P]):
    """Runs a search: decides which sequences are continued. Without one a request only generates.

    `evicts`: whether it works with cache policies that evict. Each generation then evicts for
    itself, and a continuation computes the keys of its tokens again.
    """

    slot: Slot = "controller"
    evicts: bool = True

    @abstractmethod
    def check(self, parameters: P, n: int, limits: SearchLimits) -> None:
        """Refuse parameters that cannot work, before anything runs.

        Raises:
            RequestError: names the field under `decoding.NAME`.
        """

    @abstractmethod
    def budget(self, parameters: P) -> Budget:
        """The request's budget; fields left out are the server's limits."""

    def composes(self, parameters: P) -> bool:
        """Whether it composes answer texts itself, so that token rules do not bind them."""
        return False

    def forms(self, parameters: P) -> Mapping[str, StructuredOutputs]:
        """Forms by name, of texts that it generates and reads itself (`Generate.form`)."""
        del parameters
        return {}

    def trace(self, parameters: P) -> TraceLevel:
        """How much of the tree the answer shows."""
        return "none"

    @abstractmethod
    def run(
        self, parameters: P, context: SearchContext
    ) -> Generator[Operation | list[Operation], Any, Outcome]:
        """The search: yields operations, receives results. A function of its arguments and results.

        A yield may raise `BudgetExhausted`, once: return what was found so far. It may raise
        `GenerationError` in place of results: one of the operation's requests has failed.
        """
