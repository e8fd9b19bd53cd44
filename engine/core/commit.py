"""The end of a step: what was computed and chosen is recorded, draft tokens are kept or dropped."""

from collections.abc import Sequence as List
from dataclasses import dataclass, field

from ...kvcache.store import KVStore
from ..speculation.planner import DraftPlanner
from ..state.request import (
    BROKEN,
    NO_ALLOWED_TOKEN,
    NOT_FINITE,
    Failure,
    FinishReason,
    StepOutput,
)
from ..state.sequence import Context, Sequence
from ..state.step import Decoded, Step
from .eviction import Eviction
from .step_outputs import empty_output, failed_output, output_of

_Ending = tuple[FinishReason | None, int | str | None]
"""Why a choice ended, and with which stop token; None: it goes on, or there is none."""


@dataclass(slots=True)
class Committed:
    """What a step brought: its outputs, and the sequences that `ended` with it or are `broken`."""

    outputs: list[StepOutput] = field(default_factory=list[StepOutput])
    ended: list[Sequence] = field(default_factory=list[Sequence])
    broken: list[Sequence] = field(default_factory=list[Sequence])


class Commit:
    """Commits steps, and counts them. It ends no sequence: it says which have ended.

    `prompt_tokens`, `generation_tokens`: read and generated so far. `steps`: committed so far.
    """

    def __init__(self, store: KVStore, eviction: Eviction, planner: DraftPlanner) -> None:
        self._store = store
        self._eviction = eviction
        self._planner = planner
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.steps = 0

    def commit(self, step: Step, decoded: List[Decoded]) -> Committed:
        """Record what was computed and chosen."""
        self.steps += 1
        failed = _failures(step, decoded)
        self._count_computed(step, failed)
        done = Committed()
        moves: list[tuple[int, int]] = []
        for item in decoded:
            moves += self._take(item, done, failed)
        if moves:
            sources, targets = zip(*moves, strict=True)
            self._store.move_slots(sources, targets)
        done.broken = [each for each, _ in failed.values() if each not in done.ended]
        for sequence in self._eviction.evict(step, decoded, [*done.ended, *done.broken]):
            failed[id(sequence)] = (sequence, BROKEN)
            done.broken.append(sequence)
        _end_read(step, failed, done)
        done.outputs += [failed_output(each, failed[id(each)][1]) for each in done.broken]
        return done

    def _count_computed(self, step: Step, failed: dict[int, tuple[Sequence, Failure]]) -> None:
        """Advance `computed` of each context, and offer its full pages to the prefix cache."""
        for chunk in step.chunks:
            context = chunk.context
            read = context.prompt_length - context.computed
            self.prompt_tokens += max(0, min(chunk.count, read))
            context.computed += chunk.count - chunk.drafted
            if not chunk.drafted and id(chunk.sequence) not in failed:
                context.table.publish(context.names, min(context.computed, context.shareable))
            _name_snapshots(context)

    def _take(
        self, item: Decoded, done: Committed, failed: dict[int, tuple[Sequence, Failure]]
    ) -> list[tuple[int, int]]:
        """Append one sequence's new tokens; returns the KV slots that have to move, (from, to)."""
        sequence = item.sequence
        moves: list[tuple[int, int]] = []
        count, (reason, stop_reason) = self._append(sequence, item.tokens)
        if reason is not None:  # it ended before the failure
            failed.pop(id(sequence), None)
        elif item.ending == NO_ALLOWED_TOKEN:
            reason, stop_reason = "stop", NO_ALLOWED_TOKEN
        if sequence.draft is not None:
            moves = _keep_accepted(item, count)
        if count or reason is not None:
            done.outputs.append(output_of(item, count, reason, stop_reason))
        if reason is not None:
            done.ended.append(sequence)
        if item.draft is not None and not self._planner.learn(sequence, item):
            failed.setdefault(id(sequence), (sequence, BROKEN))
        if reason is None and (failure := sequence.constraint_failure) is not None:
            failed.setdefault(id(sequence), (sequence, failure))
        return moves

    def _append(self, sequence: Sequence, tokens: List[int]) -> tuple[int, _Ending]:
        """Append tokens up to the one that ends the choice; returns how many, and why it ended."""
        before = len(sequence.tokens)
        ending: _Ending = (None, None)
        for token in tokens:
            sequence.tokens.append(token)
            ending = _ending(sequence, token)
            if ending[0] is not None:
                break
        count = len(sequence.tokens) - before
        for context in sequence.other_contexts:
            context.tokens += sequence.tokens[before:]
        for context in sequence.contexts:
            context.computed = len(context.tokens) - 1
            if context.thought is not None:
                context.thought.read(context.tokens)
        self.generation_tokens += count
        return count, ending


def _ending(sequence: Sequence, token: int) -> _Ending:
    if token in sequence.request.stop_token_ids:
        return "stop", token
    constraint = sequence.constraint
    if constraint is not None:
        constraint.read((token,))
        if constraint.complete:
            return "stop", None
    if sequence.generated >= sequence.request.max_tokens:
        return "length", None
    return None, None


def _keep_accepted(item: Decoded, count: int) -> list[tuple[int, int]]:
    """Drop the rejected draft tokens; returns the KV slots that have to move, (from, to)."""
    item.sequence.draft = None
    moves: list[tuple[int, int]] = []
    for context in item.sequence.contexts:
        table = context.table
        moves += table.compact(context.computed - count, item.accepted[: count - 1])
        table.truncate(context.computed)
        table.publish(context.names, min(context.computed, context.shareable))
    return moves


def _name_snapshots(context: Context) -> None:
    """Keep the snapshots of states whose tokens the prefix cache can find."""
    state = context.recurrent
    if state is not None:
        for length in list(state.unnamed):
            answer = length > context.prompt_length
            state.name_snapshot(length, context.table.chain(length), answer=answer)


def _end_read(step: Step, failed: dict[int, tuple[Sequence, Failure]], done: Committed) -> None:
    """End the choices that only had to read their prompt and have read it."""
    for chunk in step.chunks:
        sequence = chunk.sequence
        read = sequence.request.max_tokens == 0 and sequence.remaining == 0
        if read and id(sequence) not in failed:
            done.outputs += [
                empty_output(sequence, index)
                for index in (sequence.index, *sequence.pending_choices)
            ]
            done.ended.append(sequence)


def _failures(step: Step, decoded: List[Decoded]) -> dict[int, tuple[Sequence, Failure]]:
    """The sequences that cannot go on, by `id`, and why.

    If a prompt's keys are not finite, none of its request's choices has a first token.
    """
    unread = {chunk.sequence.request.id for chunk in step.chunks if not chunk.finite}
    failed = {
        id(chunk.sequence): (chunk.sequence, NOT_FINITE)
        for chunk in step.chunks
        if not chunk.finite
    }
    for item in decoded:
        if item.sequence.request.id in unread:
            item.tokens, item.ending = [], NOT_FINITE
        if isinstance(item.ending, Failure):
            failed[id(item.sequence)] = (item.sequence, item.ending)
    return failed
