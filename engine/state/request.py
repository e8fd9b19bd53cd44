"""What enters the engine and what leaves it. All of it is immutable but `Usage`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from ...decoding.constraint.grammar import Grammar
from ...decoding.constraint.thinking import Thinking
from ...decoding.methods import NO_METHODS, Methods
from ...decoding.sampling import Sampling
from ...decoding.sampling_params import PLAIN_TEXT, TextOptions
from ...decoding.search.operations import NO_ALLOWED_TOKEN as NO_ALLOWED_TOKEN
from ...decoding.search.operations import Node
from ...decoding.target import Target
from ...errors import GenerationError
from ...kvcache.base import CachePolicy, Retention
from ...kvcache.full import KEEP_EVERYTHING
from ...registry import Choice
from .counters import NO_COUNTERS, MethodCounters
from .pictures import Picture

FinishReason = Literal["stop", "length"]
PART = "#"
"""Separates the id of a request and the number of one of its subrequests."""
Flow = tuple[str, bool]
"""Unit of fair sharing: (owner, True) for an owner's searches, (owner, False) for all else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a request cannot go on, while others can; becomes a `GenerationError`."""

    code: str
    message: str

    def error(self) -> GenerationError:
        """The error that the caller gets."""
        return GenerationError(self.message, code=self.code)


NOT_FINITE: Final = Failure(
    code="numerical_error",
    message="the model's numbers overflowed or are NaN at this place of the text, so that there is "
    "no next token; change the prompt, or have the model served in a wider type (--dtype bfloat16 "
    "or float32)",
)
BROKEN: Final = Failure(
    code="internal_error", message="internal error; the server's log has the details"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A chat, and further variables for its template."""

    messages: Sequence[Mapping[str, Any]]
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTask:
    """What controllers see of a request.

    `problem`: the prompt's text, or what a chat's user said last. `conversation`: None if the
    prompt is no chat. `max_tokens`: as the caller set it.
    `sequences`: how many may run at once, counting each in all its contexts. `grammars`: of the
    controller's forms, by name.
    """

    problem: str
    conversation: Conversation | None
    max_tokens: int | None
    sequences: int
    grammars: Mapping[str, Grammar] = field(default_factory=dict[str, Grammar])


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One validated request: token ids in, `n` choices out.

    `before`: begin and end of the caller's prompt in `prompt_ids`, if a suffix is there as well.
    `max_tokens` is resolved (never None) and prompt + max_tokens fits the context. `stop_token_ids`
    already holds the end-of-sequence ids unless the caller ignores them. `logprobs`: how many
    alternatives to report beside the chosen token; None reports nothing. `prompt_logprobs`: the
    same for every prompt token but the first. `text`: how its tokens become text, which the engine
    does not see. `owner`: owners share the engine by `weight`, whatever they ask of it. `priority`:
    lower runs earlier among requests of one owner. `cache_salt`: prefixes are shared only between
    requests of equal salt. `adapter`: key of the adapter that it is for; empty: none. `contexts`:
    prompts of the target's further contexts. `combines`: whether the target changes anything.
    `grammar`: what the answer has to be; None: anything. `thinking`: what holds of a thought
    before the answer; None: nothing. `dropped_thinking`: how the thoughts are marked whose keys go
    when they have ended; None: they stay. `pictures`: in the order of their placeholders.
    `search`: what a controller needs of the request, which then runs only as subrequests. The
    remaining fields are for subrequests. `part_of`: id of the
    request that it belongs to. `ruled`: its logprobs are scores after the rules; tokens dropped by
    filters have none. `scored_from`: position of the first prompt token with logprobs. `answered`:
    number of last tokens of the prompt, and of all contexts, that belong to the answer. `retain`:
    keep its keys and values when it ends, under `retained_name`, until they are released or room is
    short. `source`: name of a retained sequence that begins like this prompt."""

    id: str
    prompt_ids: tuple[int, ...]
    before: tuple[int, int] | None = None
    sampling: Sampling
    max_tokens: int
    n: int = 1
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    text: TextOptions = PLAIN_TEXT
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    owner: str = ""
    weight: float = 1.0
    priority: int = 0
    cache_salt: str = ""
    adapter: str = ""
    methods: Methods = NO_METHODS
    policy: Choice[CachePolicy[Any]] = KEEP_EVERYTHING
    contexts: tuple[tuple[int, ...], ...] = ()
    combines: bool = False
    grammar: Grammar | None = None
    thinking: Thinking | None = None
    dropped_thinking: Thinking | None = None
    pictures: tuple[Picture, ...] = ()
    search: SearchTask | None = None
    part_of: str | None = None
    ruled: bool = False
    scored_from: int = 1
    answered: int = 0
    retain: bool = False
    source: str | None = None

    @property
    def flow(self) -> Flow:
        """The flow whose share it uses."""
        return self.owner, self.part_of is not None

    def retained_name(self, index: int) -> str:
        """The name under which the keys and values of a choice are retained."""
        return f"{self.id}/{index}"

    @property
    def target(self) -> Choice[Target[Any]] | None:
        """What makes one distribution of all contexts' logits; None: the model's own."""
        return self.methods.target if self.combines else None

    @property
    def retention(self) -> Retention | None:
        """What the cache policy keeps, the same for all contexts; None: everything."""
        longest = max(map(len, (self.prompt_ids, *self.contexts)))
        return self.policy.method.retention(self.policy.parameters, longest)

    @property
    def prompt_tokens(self) -> int:
        """Tokens to read, in all contexts."""
        return len(self.prompt_ids) + sum(map(len, self.contexts))

    @property
    def sequences(self) -> int:
        """How many it runs at once: its choices in all contexts, or what its search may run."""
        if self.search is not None:
            return self.search.sequences
        return self.n * (1 + len(self.contexts))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Log-probabilities (natural log) at one position.

    They are of the model's raw distribution, or of what a target has made of it, before sampling's
    rules; of `ruled` requests after them.

    `top`: (token id, logprob) pairs, most probable first, as many as were asked for.
    `rank`: 1 for the most probable token.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """New tokens of one choice after one engine step; the engine knows no text.

    `stop_reason`: the stop token that ended it, or `NO_ALLOWED_TOKEN`.
    `failure`: the choice has no next token, and its request ends with an error.
    `cached_tokens`: prompt tokens served from the prefix cache, on the choice's first output.
    `first_scheduled_s`: when the request left the queue (engine clock), on the first output.
    `prompt_logprobs`: on the first output of choice 0, where they were asked for.
    `counters`: what methods counted since the choice's last output; None: nothing.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    failure: Failure | None = None
    cached_tokens: int = 0
    first_scheduled_s: float | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    counters: MethodCounters | None = None

    def first(self, count: int) -> "StepOutput":
        """The same with its first `count` tokens only, at least one."""
        counters = self.counters
        if counters is not None:
            counters = replace(counters, accepted=min(counters.accepted, count - 1))
        return replace(
            self,
            token_ids=self.token_ids[:count],
            logprobs=self.logprobs[:count],
            counters=counters,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceDelta:
    """What a caller receives: `text` that became final, and the tokens since the last delta.

    `text` may lag behind `token_ids`: an unfinished UTF-8 sequence or the possible beginning of
    a stop string is held back. A delta with `finish_reason` is the last of its choice.
    `stop_reason`: the stop string or stop token that ended the choice, None for end-of-sequence;
    `NO_ALLOWED_TOKEN` if its rules left none.
    `places`: with logprobs, where in the choice's text each token begins, in characters.
    `counters`: what methods counted for these tokens; None: nothing. `nodes`: nodes of a search's
    tree that are new or have changed.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    places: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    counters: MethodCounters | None = None
    nodes: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The tree of a search: its nodes by id, and the budget that ended it, if one did."""

    nodes: tuple[Node, ...]
    exhausted: str | None


@dataclass(slots=True, kw_only=True)
class Usage:
    """Token counts of one request, all choices together; grows while it runs.

    `steps`: passes in which a choice got tokens. `counters`: what its methods counted. `thoughts`:
    nodes of a search's tree; its other counts are over all its subrequests."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    steps: int = 0
    counters: MethodCounters = NO_COUNTERS
    thoughts: int = 0

    def add(self, other: "Usage") -> None:
        """Add the counts of another request."""
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cached_tokens += other.cached_tokens
        self.steps += other.steps
        self.counters = self.counters.add(other.counters)
        self.thoughts += other.thoughts
