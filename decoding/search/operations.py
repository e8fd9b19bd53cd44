"""Operations that a controller yields, and the results that it receives.

A controller is a generator: it yields an operation, or a list of operations that may run at the
same time, and receives the result, or the list of results in the same order. It never sees a page,
a batch or another request, so that tests can run it with scripted results alone.

A `State` is a value: appending and truncating make new states and can neither fail nor leak. The
engine decides where its keys and values are (docs/decisions/0018-search.md).
"""

from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

FinishReason = Literal["stop", "length"]
NO_ALLOWED_TOKEN: Final[Literal["no_allowed_token"]] = "no_allowed_token"
"""The `stop_reason` of an answer that ended because its rules left no token."""
NodeStatus = Literal["open", "kept", "dropped", "answer"]


@dataclass(frozen=True, slots=True)
class State:
    """A text as tokens: a prompt, and what was generated or appended after it.

    `source`: id of the generation that it came from, for the engine; never compared. `prompt`: how
    many of the tokens are the prompt and not an answer to it; None: all of them.
    """

    ids: tuple[int, ...]
    source: str | None = field(default=None, compare=False)
    prompt: int | None = field(default=None, compare=False)

    def append(self, ids: tuple[int, ...]) -> "State":
        """The state with `ids` appended, as if they were generated."""
        length = len(self.ids) if self.prompt is None else self.prompt
        return replace(self, ids=self.ids + ids, prompt=length)

    def truncate(self, length: int) -> "State":
        """Its first `length` tokens."""
        return replace(self, ids=self.ids[:length])


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """`count` continuations of a state, choice i under the request's seed for choice i.

    `max_tokens`: of each. `stop`: texts that end one, in addition to the request's. `guided`:
    whether the request's target (such as cfg) applies: it does to thoughts, not to judgements of
    them. `logprobs`: whether the results have them. `keep`: whether their states will be continued.
    `form`: the name of one of the controller's forms, which they have to have; None: any text.

    Result: a tuple of `Generated`.
    """

    state: State
    count: int = 1
    max_tokens: int
    stop: tuple[str, ...] = ()
    guided: bool = True
    logprobs: bool = False
    keep: bool = False
    form: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """One continuation. `state`: with the new tokens, except one that ends the text.

    `text` is without the stop string. `stop_reason`: the stop string or token that ended it; None
    if the model ended the text ("stop") or a limit was reached ("length"). `logprobs`: of
    `token_ids`, natural log; empty if not asked for.
    """

    state: State
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | str | None = None
    logprobs: tuple[float, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether the model itself ended the text."""
        return self.finish_reason == "stop" and self.stop_reason is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """The `top` best next tokens of a state: logprobs after the request's rules.

    A mask, a bad word or a filter leaves a token out; a bias or a penalty changes its logprob,
    which is not normalised again.

    Result: a `Forwarded`.
    """

    state: State
    top: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarded:
    """`next`: (token id, logprob), best first; fewer than asked for, or none, if rules leave no
    more. `state`: the same, with its keys kept. `room`: whether the context has room for a token.
    """

    state: State
    next: tuple[tuple[int, float], ...]
    room: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The probability of each of some continuations of a state; nothing is sampled.

    Result: a tuple of floats, for each the sum of its tokens' logprobs (natural log); all are minus
    infinity if the context has no room for one of them.
    """

    state: State
    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """Scores by an evaluator that the operator has configured or registered under `name`.

    Result: a tuple of floats, one for each candidate text; higher is better.
    """

    name: str
    problem: str
    candidates: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """These states will not be continued any more. Result: None."""

    states: tuple[State, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One thought of a tree, as the caller sees it; an id may come again with a new status.

    `parent`: None for thoughts of the first level (`depth` 1). `value`: None if not judged.
    """

    id: int
    parent: int | None
    depth: int
    text: str
    value: float | None
    status: NodeStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """Show nodes to the caller. Result: None."""

    nodes: tuple[Node, ...]


Operation = Generate | Forward | Score | Evaluate | Free | Emit


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One choice of the final answer. `value`: what it was ranked by, higher is better.

    `token_ids`: those that the model wrote; None if the controller composed the text.
    """

    text: str
    finish_reason: FinishReason = "stop"
    stop_reason: int | str | None = None
    token_ids: tuple[int, ...] | None = None
    value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The answers, best first, at most as many as choices were asked for."""

    answers: tuple[Answer, ...]


class BudgetExhausted(Exception):  # noqa: N818 -- a signal, like StopIteration
    """Thrown into a controller at its yield: an operation would exceed the budget.

    `results`: partial results of the last operations: of each `Generate` the choices that have
    ended, None for others that have not ended. `budget`: the name of the field that is used up. The
    controller returns the best that it has, with "length"; from then on it may yield only `Emit`
    and `Free`.
    """

    def __init__(self, budget: str, results: Any = None) -> None:
        super().__init__(budget)
        self.budget = budget
        self.results = results
