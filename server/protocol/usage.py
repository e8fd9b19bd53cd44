"""Token counts as OpenAI has them, with ours beside them; as /openapi.json describes them, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import BaseModel, Field

from ...engine.state.counters import NO_COUNTERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...engine.state.request import ChoiceDelta, Request, Usage
    from .plan import Answered

Count = Annotated[int, Field(ge=0)]


class PromptTokensDetails(BaseModel):
    """Prompt tokens that the prefix cache had."""

    cached_tokens: Count


class CompletionTokensDetails(BaseModel):
    """Tokens of the answer that are thoughts."""

    reasoning_tokens: Count


class MethodUsage(BaseModel):
    """What the methods used; of each count only where there is some."""

    steps: Count
    thoughts: Count | None = None
    drafted: Count | None = None
    accepted: Count | None = None
    mean_acceptance_length: float | None = None
    guidance_tokens: Count | None = None
    evicted_tokens: Count | None = None
    held_slots: Count | None = None
    sparse_prefill: dict[str, float] | None = None


class TokenUsage(BaseModel):
    """Token counts of one request."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
    penstock: MethodUsage | None = None


def usage_object(usages: Sequence[Usage], thought_tokens: int | None = None) -> dict[str, Any]:
    """The counts of all prompts of one HTTP request together.

    `thought_tokens`: those of thoughts; None: the model's answers are not read for thoughts.
    """
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    found = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages)},
        "penstock": _own(usages),
    }
    if thought_tokens is not None:
        found["completion_tokens_details"] = {"reasoning_tokens": thought_tokens}
    return found


def _own(usages: Sequence[Usage]) -> dict[str, Any]:
    steps = sum(usage.steps for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    own: dict[str, Any] = {"steps": steps}
    thoughts = sum(usage.thoughts for usage in usages)
    if thoughts:
        own["thoughts"] = thoughts
    counters = NO_COUNTERS
    for usage in usages:
        counters = counters.add(usage.counters)
    if counters.drafted:
        own["drafted"] = counters.drafted
        own["accepted"] = counters.accepted
        own["mean_acceptance_length"] = round(completion / steps, 3) if steps else 0.0
    if counters.guidance_tokens:
        own["guidance_tokens"] = counters.guidance_tokens
    if counters.evicted:
        own["evicted_tokens"] = counters.evicted
        own["held_slots"] = counters.held_slots
    if counters.sparse_rows:
        density = round(counters.seen_pairs / counters.causal_pairs, 4)
        own["sparse_prefill"] = {"rows": counters.sparse_rows, "density": density}
    return own


class RunningUsage:
    """The counts so far, for every chunk of a stream that asks for them.

    They are those of the tokens in the chunks up to this one; a search's are those of all its
    branches, whose tokens come at the end.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self._counts = [(len(request.prompt_ids), 0) for request in requests]

    def add(self, prompt: int, delta: ChoiceDelta, answered: Answered) -> None:
        """Count a delta of the batch's prompt number `prompt`."""
        prompt_tokens, completion_tokens = self._counts[prompt]
        completion_tokens += len(delta.token_ids)
        if answered.trace is not None:
            usage = answered.usage
            prompt_tokens, completion_tokens = usage.prompt_tokens, usage.completion_tokens
        self._counts[prompt] = prompt_tokens, completion_tokens

    @property
    def tail(self) -> bytes:
        """The end of a chunk, from `,"usage"` on."""
        prompt, completion = (sum(counts) for counts in zip(*self._counts, strict=True))
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
        return b',"usage":' + orjson.dumps(usage) + b"}\n\n"
