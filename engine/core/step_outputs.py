"""The output of a step for each sequence: its new tokens, and once how its prompt was read."""

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
    guidance_tokens = count * len(sequence.other_contexts)
    if first and sequence.index == 0:
        guidance_tokens += sum(context.prompt_length for context in sequence.other_contexts)
    evicted, held_slots = _newly_evicted(sequence)
    sparse_rows, seen_pairs, causal_pairs = _read_sparsely(sequence) if first else (0, 0, 0)
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
        drafted=0 if item.draft is None else len(item.draft.tokens),
        guidance_tokens=guidance_tokens,
        evicted=evicted,
        held_slots=held_slots,
        sparse_rows=sparse_rows,
        seen_pairs=seen_pairs,
        causal_pairs=causal_pairs,
    )


def _newly_evicted(sequence: Sequence) -> tuple[int, int]:
    """Tokens evicted and slots allocated up to the step before, and not reported yet."""
    states = [c.eviction_state for c in sequence.contexts if c.eviction_state is not None]
    if not states:
        return 0, 0
    evicted = sum(state.length - state.held for state in states)
    slots = sum(state.retention.slots for state in states if state.in_slots)
    new = evicted - sequence.evicted, slots - sequence.held_slots
    sequence.evicted, sequence.held_slots = evicted, slots
    return new


def _read_sparsely(sequence: Sequence) -> tuple[int, int, int]:
    """Rows of sparse prefills, the pairs of query and key that they saw, and all causal pairs.

    Reported for choice 0 only, which counts for all.
    """
    counts = [(0, 0, 0)]
    if sequence.index == 0:
        counts += [
            b.sparse_prefill.counted() for b in sequence.contexts if b.sparse_prefill is not None
        ]
    rows, seen, causal = zip(*counts, strict=True)
    return sum(rows), sum(seen), sum(causal)


def failed_output(sequence: Sequence, failure: Failure) -> StepOutput:
    """The end of a choice that cannot go on."""
    return StepOutput(
        request_id=sequence.request.id, index=sequence.index, token_ids=(), failure=failure
    )


def empty_output(sequence: Sequence, index: int) -> StepOutput:
    """The end of a choice that only had to read its prompt."""
    sparse_rows, seen_pairs, causal_pairs = _read_sparsely(sequence) if index == 0 else (0, 0, 0)
    return StepOutput(
        request_id=sequence.request.id,
        index=index,
        token_ids=(),
        finish_reason="length",
        cached_tokens=sequence.cached_tokens,
        first_scheduled_s=sequence.first_scheduled_s,
        prompt_logprobs=_prompt_logprobs(sequence) if index == 0 else None,
        sparse_rows=sparse_rows,
        seen_pairs=seen_pairs,
        causal_pairs=causal_pairs,
    )


def _prompt_logprobs(sequence: Sequence) -> tuple[TokenLogprobs, ...] | None:
    asked = sequence.request.prompt_logprobs is not None and sequence.index == 0
    return tuple(sequence.prompt_logprobs) if asked else None
