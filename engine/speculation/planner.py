"""The plan of speculative decoding: how many draft tokens each sequence verifies in the next step,
for the most expected tokens a second."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass
from math import inf
from typing import Any, Final

from ...decoding.constraint.drafting import ConstrainedDrafting
from ...decoding.drafting.base import DraftContext, Drafter, Drafting, Vocabulary
from ...kvcache.prefix import Salt
from ...registry import Choice
from ..state.sequence import Context, Sequence
from ..state.sparse_prefill import salt_of
from ..state.step import Decoded
from .calibration import AcceptanceCalibration
from .draft_state import DraftState
from .step_cost import StepCostModel
from .time_budget import TimeBudget

logger = logging.getLogger(__name__)

_MAX_MEMORIES: Final = 8
_MARGIN: Final = 1.03
"""Factor by which a draft has to be better: estimates are noisy, and the best one is too high."""
_SAMPLING_BYTES: Final = 2 << 30
_BYTES_PER_LOGIT: Final = 6 * 4
_LOOKING_SHARE: Final = 0.01
"""Share of all time that looking for drafts may take without finding any."""
_SAVED_SHARE: Final = 0.5
"""Share of the time saved by drafts that looking for them may take in addition."""
_LOOKING_SAVED: Final = 8.0
"""Most unused time for looking that is saved up, in steps."""
_MISSES: Final = 5
"""Most misses counted; each about doubles the pause."""
_TRIAL_SHARE: Final = 0.01
"""Share of all time that trials may take."""
_TRIALS_SAVED: Final = 30.0
"""Most unused time for trials that is saved up, in steps."""
_LEAST_CHANCE, _ROWS_AHEAD = 0.02, 16
_WEIGHT: Final = 0.05
"""Weight of a new measurement of the time that asking a drafter takes."""


@dataclass(slots=True, kw_only=True)
class _Load:
    """A step as planned so far: its rows without draft tokens, the draft tokens beside them, its
    drafts, and the `tokens` that it is expected to generate."""

    rows: int
    tokens: float
    draft_tokens: int = 0
    drafts: int = 0


class DraftPlanner:
    """Plans the drafts of a step.

    `step_cost`: what rows cost. `max_rows`: of a step. `clock`: in seconds. `trees`: drafts may
    branch; otherwise they are cut to their first path. `lines`: whether drafts that do not branch
    are cheaper. The scheduler drops drafts for which rows or pages do not suffice.
    """

    def __init__(
        self,
        step_cost: StepCostModel,
        vocabulary: Vocabulary,
        max_rows: int,
        clock: Callable[[], float],
        *,
        trees: bool = True,
        lines: Callable[[], bool] = lambda: False,
    ) -> None:
        self._step_cost = step_cost
        self._vocabulary = vocabulary
        # Every draft token is sampled, and sampling makes some copies of a row of logits.
        self._max_rows = min(max_rows, _SAMPLING_BYTES // (_BYTES_PER_LOGIT * vocabulary.size))
        self._states: dict[Sequence, DraftState] = {}
        self._memories: OrderedDict[Salt, dict[str, Any]] = OrderedDict()
        self._clock = clock
        self._trees = trees
        self._lines = lines
        self._looking = TimeBudget(share=_LOOKING_SHARE, most_steps=_LOOKING_SAVED)
        self._trials = TimeBudget(share=_TRIAL_SHARE, most_steps=_TRIALS_SAVED)
        # Recent mean time of asking a drafter, which each further draft costs again.
        self._asking_s = 0.0

    def plan(self, running: List[Sequence]) -> list[Sequence]:
        """Set the `draft` of decoding sequences with a drafter; returns those whose drafter failed.

        Draft tokens are added where they raise the tokens expected of the step, divided by its
        estimated time. So a lone sequence drafts more than one of many."""
        drafting = [s for s in running if _can_draft(s)]
        broken: list[Sequence] = []
        if not drafting:
            return broken
        for sequence in drafting:
            sequence.draft = None
        rows = 0
        for sequence in running:
            rows += sequence.remaining
            for context in sequence.other_contexts:
                rows += context.remaining
        took_s = self._step_cost.seconds(rows)
        self._looking.pass_step(took_s)
        self._trials.pass_step(took_s)
        begun = [self._states[s].drafting for s in drafting if s in self._states]
        fixed = any(each.fixed for each in begun)
        # If some always draft, no step is without draft tokens.
        closed = self._looking.left_s < 0 or (not fixed and self._step_cost.is_stale(rows))
        if closed and not fixed and len(begun) == len(drafting):
            return broken
        load = _Load(rows=rows, tokens=float(sum(s.decodes for s in running)))
        most = self._max_rows - rows
        worth = self._worth(load)
        for sequence in drafting:
            state = self._states.get(sequence)
            if state is not None and state.pause > 1 and not state.drafting.fixed:
                state.pause -= 1
                continue
            # Choices that fork off next get their first token together, without draft tokens.
            if (
                not sequence.decodes
                or sequence.pending_choices
                or most <= 0
                or _limit(sequence) <= 0
            ):
                continue
            if any(_reads_sparsely(context) for context in sequence.contexts):
                continue
            try:
                if state is None:
                    state = self._states[sequence] = self._start(sequence)
                state.pause = 0
                if not state.drafting.fixed and (closed or self._looking.left_s < 0):
                    continue
                most -= self._draft(sequence, state, load, worth, most, took_s)
            except Exception:  # noqa: BLE001, RUF100 - a plug-in may raise anything; other requests go on
                _log_failure(sequence)
                sequence.draft = None
                broken.append(sequence)
        return broken

    def _draft(
        self,
        sequence: Sequence,
        state: DraftState,
        load: "_Load",
        worth: float,
        most: int,
        took_s: float,
    ) -> int:
        """Set one sequence's `draft`; returns the rows that it takes."""
        begun_s, rows, drafting = self._clock(), 0, state.drafting
        best, gain = self._size(sequence, state, load, worth, most)
        if best:
            draft = drafting.propose(best, _limit(sequence))
            draft = sequence.draft = draft if self._trees else draft.line()
            if (
                draft.tokens
                and not 0 <= min(draft.tokens) <= max(draft.tokens) < self._vocabulary.size
            ):
                raise ValueError("a draft has tokens outside of the vocabulary")
            contexts = 1 + len(sequence.other_contexts)
            size = len(draft.tokens)
            rows = size * contexts
            load.draft_tokens += rows
            load.drafts += contexts
            load.tokens += min(gain, size)
        asked_s = min(self._note(drafting, begun_s), took_s)
        if not drafting.fixed:
            self._asking_s += _WEIGHT * (asked_s - self._asking_s)
        return rows

    def learn(self, sequence: Sequence, item: Decoded) -> bool:
        """Tell a drafter how its draft was verified; False: the drafter failed."""
        assert item.draft is not None
        begun_s, state = self._clock(), self._states[sequence]
        if state.expected_accepted:
            state.calibration.note(state.expected_accepted, len(item.accepted))
        try:
            state.drafting.learn(item.draft, item.predictions, item.accepted)
        except Exception:  # noqa: BLE001, RUF100 - as above
            _log_failure(sequence)
            return False
        self._note(state.drafting, begun_s)
        return True

    def finish(self, sequence: Sequence) -> None:
        """Tell the drafter that its sequence has ended, if it is `fixed` or its budget allows."""
        state = self._states.pop(sequence, None)
        if state is None:
            return
        drafting = state.drafting
        if drafting.fixed or self._looking.left_s >= 0:
            begun_s = self._clock()
            try:
                drafting.finish()
            except Exception:  # noqa: BLE001, RUF100 - its request has ended already
                _log_failure(sequence)
            self._note(drafting, begun_s)

    def clear(self) -> None:
        """Forget all sequences, after a step has failed half-way."""
        self._states.clear()

    def _note(self, drafting: Drafting, begun_s: float) -> float:
        """The time since `begun_s`, charged to the budget unless the drafter is `fixed`."""
        took_s = self._clock() - begun_s
        if not drafting.fixed:
            self._looking.spend(took_s)
        return took_s

    def _size(
        self, sequence: Sequence, state: DraftState, load: "_Load", worth: float, most: int
    ) -> tuple[int, float]:
        """How many draft tokens, and how many of them are expected to be accepted.

        `most`: rows for them, in all contexts together.
        """
        contexts, drafting = 1 + len(sequence.other_contexts), state.drafting
        sizes = drafting.sizes(_limit(sequence), worth)
        if drafting.fixed:
            best, gain = sizes[-1] if sizes else (0, 0.0)
            state.expected_accepted = 0.0
            return min(best, most // contexts), gain
        sizes = [(size, right) for size, right in sizes if size * contexts <= most]
        share = state.calibration.share
        best, gain = self._best([(size, right * share) for size, right in sizes], load, contexts)
        state.expected_accepted = gain / share
        if not best:
            state.calibration.recover()
        # A drafter with nothing worth drafting now may have something a few tokens later.
        state.misses = 0 if best else min(state.misses + 1, _MISSES)
        state.pause = 2**state.misses - 1
        return best, gain

    def _worth(self, load: "_Load") -> float:
        """The least acceptance probability at which a draft token is worth the time of its row."""
        now_s = self._step_cost.seconds(load.rows)
        each_s = min(
            (self._step_cost.seconds(load.rows, more) - now_s) / more for more in (4, _ROWS_AHEAD)
        )
        return max(_LEAST_CHANCE, each_s * load.tokens / now_s)

    def _best(
        self, sizes: List[tuple[int, float]], load: "_Load", contexts: int
    ) -> tuple[int, float]:
        """The size with most tokens a second, and its gain in tokens; (0, 0) if none pays.

        A size whose gain is infinite is a trial: granted, at gain 0, while its budget lasts.
        """
        best, gain = 0, 0.0
        step_cost = self._step_cost
        now_s = best_s = step_cost.seconds(load.rows, load.draft_tokens, load.drafts)
        drafted_s = step_cost.seconds(load.rows, 0, load.drafts + contexts)
        rate = _MARGIN * load.tokens / now_s
        for size, right in sizes:
            took_s = drafted_s + step_cost.of_draft_tokens(
                load.rows, load.draft_tokens + size * contexts
            )
            if right == inf:
                if took_s - now_s <= self._trials.left_s:
                    self._trials.spend(took_s - now_s)
                    return size, 0.0
            elif (load.tokens + right) / (took_s + self._asking_s) > rate:
                best, gain, best_s = size, right, took_s
                rate = (load.tokens + right) / (took_s + self._asking_s)
        saved_s = now_s * (load.tokens + gain) / load.tokens - best_s
        self._looking.earn(_SAVED_SHARE * saved_s)
        return best, gain

    def _start(self, sequence: Sequence) -> DraftState:
        choice, constraint = sequence.request.methods.drafter, sequence.constraint
        drafting, calibration = None, AcceptanceCalibration()
        if choice is not None:
            drafting, calibration = self._ask(sequence, choice)
        if constraint is not None:
            drafting = ConstrainedDrafting(constraint, drafting, vocab_size=self._vocabulary.size)
        assert drafting is not None
        return DraftState(drafting=drafting, calibration=calibration)

    def _ask(
        self, sequence: Sequence, choice: Choice[Drafter[Any]]
    ) -> tuple[Drafting, AcceptanceCalibration]:
        """The request's drafter, started, and how good its expectations are."""
        memory = self._memory(salt_of(sequence.request, None))
        calibration = memory.setdefault(
            f"calibration: {choice.method.name}", AcceptanceCalibration()
        )
        context = DraftContext(
            vocabulary=self._vocabulary,
            memory=memory,
            trees=self._trees,
            # Contexts that evict do not run in graphs.
            lines=self._lines() and sequence.eviction_state is None,
        )
        return choice.method.start(choice.parameters, sequence, context), calibration

    def _memory(self, salt: Salt) -> dict[str, Any]:
        """What drafters keep for requests of that salt; the least recently used is dropped."""
        memory = self._memories.setdefault(salt, {})
        self._memories.move_to_end(salt)
        if len(self._memories) > _MAX_MEMORIES:
            self._memories.popitem(last=False)
        return memory


def _log_failure(sequence: Sequence) -> None:
    logger.exception("the drafter of request %s has failed", sequence.request.id)


def _can_draft(sequence: Sequence) -> bool:
    return sequence.request.methods.drafter is not None or sequence.constraint is not None


def _limit(sequence: Sequence) -> int:
    """How many draft tokens one step could still accept."""
    limit = sequence.request.max_tokens - sequence.generated - 1
    for context in sequence.contexts:
        if context.eviction_state is not None:  # evictions happen between steps
            limit = min(limit, context.eviction_state.room - 1)
        if context.thought is not None and context.thought.limit is not None:
            limit = 0  # the thought is dropped first
    return limit


def _reads_sparsely(context: Context) -> bool:
    """Whether its next row is of a sparse prefill: it sees part of the keys, draft tokens see
    all."""
    return context.sparse_prefill is not None and context.sparse_prefill.covers(context.computed, 1)
