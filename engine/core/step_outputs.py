"""The output of a step for each sequence: its new tokens, and once how its prompt was read."""

from ..state.counters import MethodCounters
from ..state.request import Failure, FinishReason, StepOutput, TokenLogprobs
from ..state.sequence import Sequence
from ..state.step import Decoded


def output_of(
    item: Decoded, count: int, reason: FinishReason | None, stop_reason: int | str | None
) -> StepOutput:
    """The first `count` of a sequence's new tokens, and why it has ended with them, if so."""
    sequence = item.sequence
    first = not sequence.has_output
    sequence.has_output = True
    return StepOutput(
        request_id=sequence.request.id,
        index=sequence.index,
        token_ids=tuple(item.tokens[:count]),
        logprobs=item.logprobs[:count],
        finish_reason=reason,
        stop_reason=stop_reason,
        cached_tokens=sequence.cached_tokens if first else 0,
        first_scheduled_s=sequence.first_scheduled_s if first else None,
        prompt_logprobs=_prompt_logprobs(sequence) if first else None,
        counters=_counters(item, count, first),
    )


def _counters(item: Decoded, count: int, first: bool) -> MethodCounters | None:
    """What the sequence's methods counted since its last output; None: it has none at work."""
    sequence, draft = item.sequence, item.draft
    counters = _sparse_prefill(sequence) if first else None
    if sequence.eviction_state or sequence.thought or sequence.other_contexts:
        counters = _sum(counters, _newly_evicted(sequence))
    if sequence.other_contexts:
        read = first and sequence.index == 0
        prompts = sum(c.prompt_length for c in sequence.other_contexts) if read else 0
        tokens = prompts + count * len(sequence.other_contexts)
        counters = _sum(counters, MethodCounters(guidance_tokens=tokens))
    if draft is not None:
        drafted = MethodCounters(drafted=len(draft.tokens), accepted=max(0, count - 1))
        counters = _sum(counters, drafted)
    return counters


def _sum(counters: MethodCounters | None, more: MethodCounters | None) -> MethodCounters | None:
    if counters is None or more is None:
        return counters or more
    return counters.add(more)


def _newly_evicted(sequence: Sequence) -> MethodCounters | None:
    """Tokens evicted and slots allocated up to the step before, and not reported yet."""
    states = [c.eviction_state for c in sequence.contexts if c.eviction_state is not None]
    dropped = [c.thought for c in sequence.contexts if c.thought and not c.eviction_state]
    if not states and not dropped:
        return None
    before = sequence.reported_evictions
    sequence.reported_evictions = now = MethodCounters(
        evicted=sum(each.evicted for each in (*states, *dropped)),
        held_slots=sum(state.retention.slots for state in states if state.in_slots),
    )
    return MethodCounters(
        evicted=now.evicted - before.evicted, held_slots=now.held_slots - before.held_slots
    )


def _sparse_prefill(sequence: Sequence) -> MethodCounters | None:
    """The sparse prefills of all contexts; only on choice 0, which counts for all choices."""
    prefills = [c.sparse_prefill for c in sequence.contexts if c.sparse_prefill is not None]
    if not prefills or sequence.index != 0:
        return None
    rows, seen, causal = zip(*(prefill.counted() for prefill in prefills), strict=True)
    return MethodCounters(sparse_rows=sum(rows), seen_pairs=sum(seen), causal_pairs=sum(causal))


def failed_output(sequence: Sequence, failure: Failure) -> StepOutput:
    """The end of a choice that cannot go on."""
    return StepOutput(
        request_id=sequence.request.id, index=sequence.index, token_ids=(), failure=failure
    )


def empty_output(sequence: Sequence, index: int) -> StepOutput:
    """The end of a choice that only had to read its prompt."""
    return StepOutput(
        request_id=sequence.request.id,
        index=index,
        token_ids=(),
        finish_reason="length",
        cached_tokens=sequence.cached_tokens,
        first_scheduled_s=sequence.first_scheduled_s,
        prompt_logprobs=_prompt_logprobs(sequence) if index == 0 else None,
        counters=_sparse_prefill(sequence) if index == 0 else None,
    )


def _prompt_logprobs(sequence: Sequence) -> tuple[TokenLogprobs, ...] | None:
    asked = sequence.request.prompt_logprobs is not None and sequence.index == 0
    return tuple(sequence.prompt_logprobs) if asked else None
