"""Limits of one request: how many sequences it may have, and how long they may become."""

from dataclasses import dataclass

from ...decoding.sampling_params import SamplingFields
from ...errors import ContextLengthError, RequestError
from ...kvcache.base import Retention


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a request needs room for.

    `prompts`: tokens of its own prompt, then of those of the target's further contexts. `n`: its
    choices. `retention`: what is kept of each sequence; None: everything. `prompt_param`,
    `target`, `target_param`, `policy_param`: the fields that errors name: of the prompt, the
    target, its further prompts and the cache policy.
    """

    prompts: tuple[int, ...]
    n: int
    retention: Retention | None
    prompt_param: str = ""
    target: str = ""
    target_param: str = ""
    policy_param: str = ""

    @property
    def contexts(self) -> int:
        """How many contexts each choice has."""
        return len(self.prompts)

    def evicts(self, max_tokens: int) -> bool:
        """Whether any context evicts before answers of `max_tokens` end."""
        return self.retention is not None and any(
            self.retention.evicts(tokens, max_tokens) for tokens in self.prompts
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may take of the engine.

    `max_length_tokens`: prompt plus answer, where every key is kept. `context_tokens`: the model's
    own limit, which applies to requests that evict. `max_sequences`: a request's choices times
    their contexts. `pages`, `page_size`: of the KV cache.
    """

    max_length_tokens: int
    context_tokens: int
    max_sequences: int
    pages: int
    page_size: int

    def length(self, demand: Demand) -> int:
        """Most tokens of a sequence: with eviction, memory does not grow, and positions count."""
        return self.max_length_tokens if demand.retention is None else self.context_tokens

    def check_sequences(self, n: int, contexts: int = 1, target: str = "") -> None:
        """Raise RequestError where `n` choices, each in `contexts` contexts, are too many."""
        if contexts > self.max_sequences:
            raise RequestError(
                f"{target} takes {contexts} sequences, but this server runs at most "
                f"{self.max_sequences} at once (--max-running)",
                param=target,
                code="invalid_parameter",
            )
        if n * contexts > self.max_sequences:
            each = f", each in {contexts} contexts," if contexts > 1 else ""
            raise RequestError(
                f"n is {n}{each} but this server runs at most {self.max_sequences} sequences at "
                f"once; lower n or send several requests",
                param="n",
                code="invalid_parameter",
            )

    def max_tokens(self, demand: Demand, params: SamplingFields, default: int | None) -> int:
        """Tokens of the answer: those asked for, or else `default`, or else all that fit.

        Raises:
            RequestError: they do not fit, or the sequences are too many.
        """
        limit = self.length(demand)
        if demand.contexts == 1:
            return _answer_tokens(demand, params, default, limit)
        self.check_sequences(demand.n, demand.contexts, demand.target)
        room = self._room(demand, limit)
        max_tokens = _answer_tokens(demand, params, min(default or room, room), limit)
        longest = max(demand.prompts[1:])
        if longest + max_tokens > limit:
            raise ContextLengthError(
                f"{demand.target_param}: with its further prompt you requested "
                f"{longest + max_tokens} tokens ({longest} in that prompt, {max_tokens} in the "
                f"completion); lower max_tokens to {limit - longest} or shorten that prompt",
                limit_tokens=limit,
                param=demand.target_param,
            )
        return max_tokens

    def check_pages(self, demand: Demand, max_tokens: int) -> None:
        """Raise ContextLengthError where the KV cache can never hold the request.

        All contexts of a choice run together, so all of them must fit at once.
        """
        if demand.retention is not None:
            self._check_retained_pages(demand, demand.retention, max_tokens)
            return
        needed = sum(-(-(tokens + max_tokens) // self.page_size) for tokens in demand.prompts)
        if needed > self.pages:
            raise ContextLengthError(
                f"the {demand.contexts} contexts need {needed * self.page_size} tokens of KV cache "
                f"with max_tokens {max_tokens}, but this server has {self.pages * self.page_size}; "
                "lower max_tokens or shorten the prompts",
                limit_tokens=self.max_length_tokens,
                param="max_tokens",
            )

    def room(self, demand: Demand) -> int:
        """Tokens that can be generated after the prompts; may be below 1."""
        longest = max(demand.prompts)
        try:
            if demand.retention is not None:
                room = self.context_tokens - longest
                self.check_pages(demand, room)
                return room
            if demand.contexts > 1:
                return self._room(demand, self.max_length_tokens)
        except ContextLengthError:
            return 0
        return self.max_length_tokens - longest

    def _check_retained_pages(self, demand: Demand, retention: Retention, max_tokens: int) -> None:
        """At the first eviction the keys kept take new pages before the old ones are freed."""
        needed = 0
        for tokens in demand.prompts:
            whole = tokens + max_tokens
            if retention.evicts(tokens, max_tokens):
                whole = max(tokens, retention.keep + 1)
                # If the prompt alone is too long, all choices evict in the step that forks them.
                at_once = demand.n if tokens > retention.keep else 1
                needed += at_once * -(-retention.slots // self.page_size)
            needed += -(-whole // self.page_size)
        if needed > self.pages:
            param = demand.policy_param
            raise ContextLengthError(
                f"{param}: the prompt and what is kept of it need {needed * self.page_size} tokens "
                f"of KV cache, but this server has {self.pages * self.page_size}; keep less, lower "
                "n or max_tokens, or shorten the prompt",
                limit_tokens=self.context_tokens,
                param=param,
            )

    def _room(self, demand: Demand, limit: int) -> int:
        """Tokens of the longest answer that fits in all contexts."""
        longest = max(demand.prompts[1:])
        room = limit - longest
        if room < 1:
            raise ContextLengthError(
                f"{demand.target_param}: its further prompt has {longest} tokens and leaves no "
                "room for an answer; shorten it",
                limit_tokens=limit,
                param=demand.target_param,
            )
        room = min(room, max(1, limit - demand.prompts[0]))
        if demand.retention is None:
            # Each context may leave its last page partly empty.
            spare = self.pages - sum(-(-tokens // self.page_size) for tokens in demand.prompts)
            room = min(room, max(1, spare // demand.contexts * self.page_size))
        return room


def _answer_tokens(demand: Demand, params: SamplingFields, default: int | None, limit: int) -> int:
    """Tokens of the answer in the request's own context."""
    prompt_tokens, param = demand.prompts[0], demand.prompt_param
    room = limit - prompt_tokens
    asked = params.max_tokens
    if room < (0 if asked == 0 else 1):
        raise ContextLengthError(
            f"However, your {param} resulted in {prompt_tokens} tokens, which leaves no room "
            "for an answer; shorten it",
            limit_tokens=limit,
            param=param,
        )
    if asked is not None and asked > room:
        raise ContextLengthError(
            f"However, you requested {prompt_tokens + asked} tokens ({prompt_tokens} in the "
            f"{param}, {asked} in the completion); lower max_tokens to {room} or shorten the "
            f"{param}",
            limit_tokens=limit,
            param="max_tokens",
        )
    if asked is None:
        asked = room if default is None else min(default, room)
    if params.min_tokens > asked:
        raise RequestError(
            f"min_tokens is {params.min_tokens} but at most {asked} tokens will be generated",
            param="min_tokens",
            code="invalid_parameter",
        )
    return asked
