"""What enters the engine and what leaves it. Nothing here changes after it is made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..decoding.base import DecodingMethod
from ..decoding.sampling import Sampling
from ..kvcache.base import CachePolicy
from ..registry import Choice

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One validated request: token ids in, `n` choices out.

    `max_tokens` is resolved (never None) and prompt + max_tokens fits the context.
    `stop_token_ids` already holds the end-of-sequence ids unless the caller ignores them.
    `logprobs`: how many alternatives to report beside the chosen token; None reports nothing.
    `prompt_logprobs`: the same for every prompt token but the first.
    `priority`: lower runs earlier; equal priorities run in order of arrival.
    `cache_salt`: prefixes are shared only between requests of equal salt.
    """

    id: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    n: int = 1
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int = 0
    cache_salt: str = ""
    decoding: Mapping[str, Choice[DecodingMethod]] = field(default_factory=dict)
    kv_cache: Mapping[str, Choice[CachePolicy]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Log-probabilities (natural log, raw model distribution) at one position.

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

    `stop_reason`: the stop token that ended it, where it was not the end-of-sequence token.
    `cached_tokens`: prompt tokens served from the prefix cache, on the choice's first output.
    `first_scheduled_s`: when the request left the queue (engine clock), on the first output.
    `prompt_logprobs`: on the first output of choice 0, where they were asked for.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    cached_tokens: int = 0
    first_scheduled_s: float | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceDelta:
    """What a caller receives: `text` that became final, and the tokens since the last delta.

    `text` may lag behind `token_ids`: an unfinished UTF-8 sequence or the possible beginning of
    a stop string is held back. A delta with `finish_reason` is the last of its choice.
    `stop_reason`: the stop string or stop token that ended the choice, None for end-of-sequence.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True, kw_only=True)
class Usage:
    """Token counts of one request, all choices together; grows while it runs."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    steps: int = 0
