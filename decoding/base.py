"""The seams of decoding: what a method is, and which slot it fills.

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
    "drafter": "which guesses are verified beside the newest token",
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
    """A request's prompt, for targets that derive further prompts from it."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Its tokens."""
        ...

    @property
    def text(self) -> str:
        """Its text, special tokens included."""
        ...

    def encode(self, text: str, *, param: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Tokens of a further prompt; RequestError names `param` where it is empty or too long."""
        ...

    def render(self, messages: Sequence[Mapping[str, str]], *, param: str) -> tuple[int, ...]:
        """Tokens of a chat, through the model's template, ready for the assistant's answer."""
        ...


class Labeller(Protocol):
    """Says which keys rows see in one layer of one context, as labels."""

    def __call__(self, q_THD: Tensor, k_KLD: Tensor) -> Labels:
        """The labels of the rows `[T, H, D]` and of the keys `[K, L, D]`; the last T are theirs.

        The newest `recent` keys are seen by every row. What else it sees follows from its query,
        and from keys and positions up to its own: not from how many rows there are, nor from keys
        that come later.
        """
        ...


class Prefill(DecodingMethod[P]):
    """Rows of a prompt see a part of its keys; rows of the answer, drafts among them, see all.

    Keys and values of the layers behind differ from exact ones. So requests share cached prefixes
    only with those of the same method and parameters.
    """

    slot: Slot = "prefill"

    @abstractmethod
    def first(self, parameters: P) -> int | None:
        """Position of the first row that sees a part; None: all see every key."""

    @abstractmethod
    def labeller(self, parameters: P, layer: int, beginning_KPD: Tensor) -> Labeller | None:
        """For one layer of a context with these keys `[K, P, D]` before the first such row.

        None: it does not pay there, and rows see every key. Follows from the arguments alone, for
        it may be asked again. May wait for the device.
        """


class Target(DecodingMethod[P]):
    """Makes a row's distribution from the model's logits in one or several contexts.

    Every token that is accepted is appended to all contexts, so that they end alike.
    """

    slot: Slot = "target"

    @abstractmethod
    def contexts(self, parameters: P, prompt: Prompt) -> tuple[tuple[int, ...], ...] | None:
        """The prompts of the further contexts; None where the parameters change nothing at all.

        Raises:
            RequestError: a field asks for what the model cannot do.
        """

    def prompt_field(self, parameters: P) -> str | None:
        """The parameter that further prompts come from, for errors that are about them."""
        return None

    @abstractmethod
    def combine(self, logits_BRV: Tensor, parameters: Sequence[P]) -> Tensor:
        """New logits `[R, V]`, float32, for R rows at once.

        `logits_BRV`: float32; context 0 is the request's own. `parameters`: one for each row.
        All rows have the same number of contexts. A row's result depends on that row alone. NaN in
        a row's logits stays NaN, and minus infinity, what a model rules out, is no NaN.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What drafters know of the tokens: ids below `size`; `pad_id` means nothing."""

    size: int
    pad_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftContext:
    """What a drafter finds around it.

    `memory`: for whatever drafters want to keep across requests, by a name of theirs; shared by the
    requests that may share cached prefixes, and by no others. `trees`: whether drafts may branch;
    otherwise they are cut to their first line. `lines`: those that do not branch cost less.
    """

    vocabulary: Vocabulary
    memory: dict[str, Any]
    trees: bool = True
    lines: bool = False


class Drafter(DecodingMethod[P]):
    """Drafts tokens ahead; one pass verifies them, and what is wrong costs rows, never
    tokens."""

    slot: Slot = "drafter"

    @abstractmethod
    def start(self, parameters: P, row: Row, context: DraftContext) -> Drafting:
        """A drafter at work on the sequence `row`, whose tokens grow while it runs."""


class Drafting(ABC):
    """What a drafter knows of one sequence."""

    @abstractmethod
    def sizes(self, limit: int, worth: float) -> Sequence[tuple[int, float]]:
        """Drafts worth a thought: (draft tokens, how many of them are expected to be right).

        `limit`: tokens of the answer that could still be accepted. `worth`: about how likely a
        guess has to be right to pay for its row; less likely ones may be left out. Ascending in
        both numbers; the engine takes one of them, or none, whichever makes most tokens a second.
        A `fixed` drafter offers one. Infinitely many right ones ask for a trial, which is granted
        now and then. The row may have grown since by tokens that no draft brought.
        """

    @property
    def fixed(self) -> bool:
        """Whether the size is the caller's choice and not the engine's."""
        return False

    @abstractmethod
    def propose(self, size: int, limit: int) -> Draft:
        """At most `size` draft tokens, none of them more than `limit` tokens ahead."""

    def learn(  # noqa: B027 -- nothing, for drafters to whom the row's tokens say enough
        self, draft: Draft, predictions: Sequence[int], accepted: Sequence[int]
    ) -> None:
        """What a pass showed that verified a draft; the row's tokens are the longer ones already.

        `predictions[0]` followed the newest token, `predictions[1 + i]` guess i of the draft.
        `accepted`: draft tokens that were right, along one path.
        """

    def finish(self) -> None:  # noqa: B027 -- as above
        """The sequence has ended, by itself or not: remember what is worth it for later ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchLimits:
    """What controllers may count on. `budget`: the server's own, every field set.

    `evaluators`: names that `Evaluate` may use.
    """

    budget: Budget
    evaluators: frozenset[str] = frozenset()


class SearchContext(Protocol):
    """A request as its controller sees it."""

    @property
    def problem(self) -> str:
        """The prompt's text; of a chat, what the user said last."""
        ...

    @property
    def prompt(self) -> State:
        """The request's own prompt, ready to be continued."""
        ...

    @property
    def n(self) -> int:
        """How many answers are wanted."""
        ...

    @property
    def seed(self) -> int:
        """For choices that the controller makes itself."""
        ...

    @property
    def max_tokens(self) -> int | None:
        """Of one generation, where the caller has set it."""
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
        """Every field set. Controllers mind `thoughts`, and the engine the rest."""
        ...

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer, the end of the text among them."""
        ...

    @property
    def min_tokens(self) -> int:
        """Tokens of an answer before which nothing ends it; rules see to tokens, not to `stop`."""
        ...

    def ask(self, text: str) -> State:
        """A prompt that puts `text` to the model in place of the problem.

        Through the chat template where the model has one; in a chat behind what was said before.
        """
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a text that continues another one; no special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        ...


class Controller(DecodingMethod[P]):
    """Decides which sequences live; a request without one is a single run.

    `evicts`: whether it works with cache policies that evict. Each generation then evicts for
    itself, and what continues it reads its tokens again.
    """

    slot: Slot = "controller"
    evicts: bool = True

    @abstractmethod
    def check(self, parameters: P, n: int, limits: SearchLimits) -> None:
        """Refuse, before anything runs, what cannot work.

        Raises:
            RequestError: names the field under `decoding.NAME`.
        """

    @abstractmethod
    def budget(self, parameters: P) -> Budget:
        """What the request allows; fields left out are the server's limits."""

    def composes(self, parameters: P) -> bool:
        """Whether it puts answers together itself: then rules of tokens say nothing of them."""
        return False

    def trace(self, parameters: P) -> TraceLevel:
        """How much of the tree the answer shows."""
        return "none"

    @abstractmethod
    def run(
        self, parameters: P, context: SearchContext
    ) -> Generator[Operation | list[Operation], Any, Outcome]:
        """The search. Deterministic: whatever it does follows from its arguments and results.

        At its yields it may meet `BudgetExhausted`, once, and returns what it has; and a
        `GenerationError` in place of results, where one of its parts has failed.
        """
