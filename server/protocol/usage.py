"""Token counts as OpenAI has them, with ours beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...engine.state.request import ChoiceDelta, Request, Usage
    from .plan import Answered


def usage_object(usages: Sequence[Usage]) -> dict[str, Any]:
    """The counts of all prompts of one HTTP request together."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages)},
        "penstock": _own(usages),
    }


def _own(usages: Sequence[Usage]) -> dict[str, Any]:
    steps = sum(usage.steps for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    own: dict[str, Any] = {"steps": steps}
    thoughts = sum(usage.thoughts for usage in usages)
    if thoughts:
        own["thoughts"] = thoughts
    drafted = sum(usage.drafted for usage in usages)
    if drafted:
        own["drafted"] = drafted
        own["accepted"] = sum(usage.accepted for usage in usages)
        own["mean_acceptance_length"] = round(completion / steps, 3) if steps else 0.0
    guidance = sum(usage.guidance_tokens for usage in usages)
    if guidance:
        own["guidance_tokens"] = guidance
    evicted = sum(usage.evicted for usage in usages)
    if evicted:
        own["evicted_tokens"] = evicted
        own["held_slots"] = sum(usage.held_slots for usage in usages)
    sparse_rows = sum(usage.sparse_rows for usage in usages)
    if sparse_rows:
        seen = sum(usage.seen_pairs for usage in usages)
        causal = sum(usage.causal_pairs for usage in usages)
        own["sparse_prefill"] = {"rows": sparse_rows, "density": round(seen / causal, 4)}
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
