"""The interfaces of decoding methods, and the slots that they fill.

A request combines at most one method per slot. The methods know neither pages nor the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from torch import Tensor

    from ..kernels.sparse_prefill.labels import Labels
    from .drafting.draft import Draft
    from .sampling import Row
    from .search.budget import Budget
    from .search.operations import Operation, Outcome, State

TraceLevel = Literal["none", "summary", "full"]
Slot = Literal["prefill", "target", "drafter", "controller"]
SLOTS: dict[Slot, str] = {
    "prefill": "which keys the rows of a prompt see",
    "target": "what distribution a row has",
    "drafter": "which draft tokens are verified beside the newest token",
    "controller": "which sequences live",
}


P = TypeVar("P", bound=BaseModel)


class DecodingMethod(ABC, Generic[P]):
    """A decoding method as requests see it.

    `parameters`: pydantic model of the request's object; unknown fields forbidden, all bounded.
    `summary`: one sentence for people who list the methods.
    """

    name: str
    slot: Slot
    parameters: type[BaseModel]
    summary: str


class Prompt(Protocol):
    """A request's prompt, for targets that derive the prompts of further contexts from it."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Its tokens."""
        ...

    @property
    def text(self) -> str:
        """Its text, special tokens included."""
        ...

    def encode(self, text: str, *, param: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Tokens of a further prompt; a RequestError names `param` if it is empty or too long."""
        ...

    def render(self, messages: Sequence[Mapping[str, str]], *, param: str) -> tuple[int, ...]:
        """Tokens of a chat, formatted by the model's template, ready for the assistant's answer."""
        ...


class Labeller(Protocol):
    """Labels which keys each row sees, in one layer of one context."""

    def __call__(self, q_THD: Tensor, k_KLD: Tensor) -> Labels:
        """Labels of query rows `[T, H, D]` and keys `[K, L, D]`; the last T keys are the rows' own.

        Every row sees the newest `recent` keys. What else it sees depends on its query and on keys
        and positions up to its own, never on the number of rows or on later keys.
        """
        ...


class Prefill(DecodingMethod[P]):
    """Sparse prefill: a prompt's rows see some of its keys; rows of answers and drafts see all.

    Keys and values of later layers differ from exact ones. So a request shares cached prefixes
    only with requests of the same method and parameters.
    """

    slot: Slot = "prefill"

    @abstractmethod
    def first(self, parameters: P) -> int | None:
        """Position of the first row that sees only a part of the keys; None: there is none."""

    @abstractmethod
    def labeller(self, parameters: P, layer: int, beginning_KPD: Tensor) -> Labeller | None:
        """The labeller of one layer of a context whose keys before that row are `[K, P, D]`.

        None: it does not pay in this layer, and rows see every key. A function of the arguments
        alone, because it may be called again. May wait for the device.
        """


class Target(DecodingMethod[P]):
    """Makes a row's distribution from the model's logits in one or several contexts.

    Every accepted token is appended to all contexts, so they all end with the same answer.
    """

    slot: Slot = "target"

    @abstractmethod
    def contexts(self, parameters: P, prompt: Prompt) -> tuple[tuple[int, ...], ...] | None:
        """The prompts of the further contexts; None where the parameters change nothing at all.

        Raises:
            RequestError: a field asks for what the model cannot do.
        """

    def prompt_field(self, parameters: P) -> str | None:
        """The parameter that further prompts come from; errors about them name it."""
        return None

    @abstractmethod
    def combine(self, logits_BRV: Tensor, parameters: Sequence[P]) -> Tensor:
        """New logits `[R, V]`, float32, for R rows at once.

        `logits_BRV`: float32; context 0 is the request's own. `parameters`: one for each row.
        All rows have the same number of contexts. A row's result depends on that row alone. NaN in
        a row's logits must stay NaN; minus infinity (a token that the model rules out) must not
        become NaN.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The token ids that drafters may use: those below `size`. `pad_id`: the padding token."""

    size: int
    pad_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftContext:
    """What a drafter is given beside the sequence.

    `memory`: what drafters keep across requests, by a name of their own; shared only by requests
    that may share cached prefixes. `trees`: whether drafts may branch; otherwise they are cut to
    their first path. `lines`: drafts that do not branch cost less.
    """

    vocabulary: Vocabulary
    memory: dict[str, Any]
    trees: bool = True
    lines: bool = False


class Drafter(DecodingMethod[P]):
    """Drafts tokens for speculative decoding; one forward pass verifies them.

    A wrong draft token costs a row of the pass; it never changes the answer.
    """

    slot: Slot = "drafter"

    @abstractmethod
    def start(self, parameters: P, row: Row, context: DraftContext) -> Drafting:
        """Begin drafting for the sequence `row`, whose tokens grow while it runs."""


class Drafting(ABC):
    """A drafter's state for one sequence."""

    @abstractmethod
    def sizes(self, limit: int, worth: float) -> Sequence[tuple[int, float]]:
        """Sizes worth considering: (draft tokens, how many of them are expected to be accepted).

        `limit`: tokens of the answer that could still be accepted. `worth`: about the acceptance
        probability at which a draft token pays for its row; less likely ones may be left out.
        Ascending in both numbers. The engine takes the one, or none, that makes the most tokens a
        second. A `fixed` drafter offers one. An expectation of infinity asks for a trial, which is
        granted now and then. The row may have grown by tokens that were not drafted.
        """

    @property
    def fixed(self) -> bool:
        """Whether the size is the caller's choice and not the engine's."""
        return False

    @abstractmethod
    def propose(self, size: int, limit: int) -> Draft:
        """At most `size` draft tokens, none of them more than `limit` tokens ahead."""

    def learn(  # noqa: B027 -- nothing, for drafters that learn from the row's tokens alone
        self, draft: Draft, predictions: Sequence[int], accepted: Sequence[int]
    ) -> None:
        """Learn from the pass that verified `draft`; the row's tokens have already grown.

        `predictions[0]` followed the newest token, `predictions[1 + i]` draft token i.
        `accepted`: indices of the draft tokens that were right, along one path.
        """

    def finish(self) -> None:  # noqa: B027 -- as above
        """The sequence has ended, for any reason: keep what is useful to later ones."""


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
