"""How many guesses each sequence verifies in the next step: what promises most tokens a second."""

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass
from math import inf
from typing import Any, Final

from ..decoding.base import DraftContext, Drafter, Drafting, Vocabulary
from .pace import Pace
from .sequence import Branch, Sequence

_MAX_MEMORIES: Final = 8
_MARGIN: Final = 1.03
"""How much better a draft has to be: estimates are noisy, and the best of several flatters."""
_SAMPLING_BYTES: Final = 2 << 30
_BYTES_PER_LOGIT: Final = 6 * 4
_ASKING_SHARE: Final = 0.01
"""Of the time of a step: what asking drafters may take that promise nothing."""
_LONGEST_PAUSE: Final = 32
_MISSES: Final = 6
"""Counted at most: then the longest pause has been reached."""
_TRIAL_SHARE: Final = 0.01
"""Of all time: what trials may take."""
_LONGEST_SAVING: Final = 30.0
"""Of them, in steps."""
_LEAST_CHANCE, _ROWS_AHEAD = 0.02, 16
_WEIGHT: Final = 0.05


@dataclass(slots=True, kw_only=True)
class _Load:
    """A step as planned so far: its rows without guesses, the guesses beside them, and the tokens
    that it promises."""

    rows: int
    tokens: float
    guesses: int = 0
    drafts: int = 0


class DraftPlanner:
    """Plans the drafts of a step. `pace` tells what rows cost; `max_rows`: of a step; `clock`: s.

    Drafts are wishes: the scheduler grants what its rows and pages leave.
    """

    def __init__(
        self, pace: Pace, vocabulary: Vocabulary, max_rows: int, clock: Callable[[], float]
    ) -> None:
        self._pace = pace
        self._vocabulary = vocabulary
        # Every guess is sampled, and sampling takes some copies of a row of logits.
        self._max_rows = min(max_rows, _SAMPLING_BYTES // (_BYTES_PER_LOGIT * vocabulary.size))
        self._memories: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._clock = clock
        self._asking_s = 0.0
        self._for_trials_s = 0.0

    def plan(self, running: List[Sequence]) -> None:
        """Set `draft` of all that decode and have a drafter.

        Guesses are added where they promise most: the tokens that the step will bring, by the time
        that it will take. So a lone sequence drafts more than one of many.
        """
        drafting = [s for s in running if "drafter" in s.request.decoding]
        if not drafting:
            return
        rows = sum(branch.remaining for s in running for branch in s.branches)
        load = _Load(rows=rows, tokens=float(sum(s.decodes for s in running)))
        most = self._max_rows - rows
        took_s = self._pace.seconds(rows)
        self._for_trials_s = min(
            self._for_trials_s + _TRIAL_SHARE * took_s, _LONGEST_SAVING * took_s
        )
        pause = self._pause(len(drafting), took_s)
        worth = self._worth(load)
        for sequence in drafting:
            sequence.draft = None
            # Choices that fork off next get their first token together, without guesses.
            if not sequence.decodes or sequence.unborn or most <= 0:
                continue
            if any(_reads_sparsely(branch) for branch in sequence.branches):
                continue
            if sequence.draft_pause > 0:
                sequence.draft_pause -= 1
                continue
            if sequence.drafting is None:
                sequence.drafting = self._start(sequence)
            limit = sequence.request.max_tokens - sequence.generated - 1
            for branch in sequence.branches:
                if branch.keeping is not None:  # an eviction is due then, between two steps
                    limit = min(limit, branch.keeping.room - 1)
            contexts = 1 + len(sequence.others)
            begun_s = self._clock()
            sizes = sequence.drafting.sizes(limit, worth)
            self._asking_s += _WEIGHT * (self._clock() - begun_s - self._asking_s)
            if sequence.drafting.fixed:
                best, gain = sizes[-1] if sizes else (0, 0.0)
                best = min(best, most // contexts)
            else:
                sizes = [(size, right) for size, right in sizes if size * contexts <= most]
                best, gain = self._best(sizes, load, contexts)
                sequence.draft_misses = 0 if best else min(sequence.draft_misses + 1, _MISSES)
                sequence.draft_pause = min(pause, len(drafting) * (2**sequence.draft_misses - 1))
            if best:
                sequence.draft = sequence.drafting.propose(best, limit)
                size = len(sequence.draft.tokens)
                most -= size * contexts
                load.guesses += size * contexts
                load.drafts += contexts
                load.tokens += min(gain, size)

    def _pause(self, askers: int, took_s: float) -> int:
        """Steps for which a drafter that promises nothing is left alone; asking takes time too.

        In the long run: at first it is asked again soon, after twice as long each time, since what
        promises nothing at the beginning of an answer often does a few tokens later.
        """
        return min(int(askers * self._asking_s / (_ASKING_SHARE * took_s)), _LONGEST_PAUSE)

    def _worth(self, load: "_Load") -> float:
        """How likely a guess must be right to bring more than its row costs, at the least."""
        now_s = self._pace.seconds(load.rows)
        each_s = min(
            (self._pace.seconds(load.rows, more) - now_s) / more for more in (4, _ROWS_AHEAD)
        )
        return max(_LEAST_CHANCE, each_s * load.tokens / now_s)

    def _best(
        self, sizes: List[tuple[int, float]], load: "_Load", contexts: int
    ) -> tuple[int, float]:
        """The size that adds most to a step's tokens a second; (0, 0) where none adds to it."""
        best, gain = 0, 0.0
        now_s = self._pace.seconds(load.rows, load.guesses, load.drafts)
        rate = _MARGIN * load.tokens / now_s
        for size, right in sizes:
            took_s = self._pace.seconds(
                load.rows, load.guesses + size * contexts, load.drafts + contexts
            )
            if right == inf:
                if took_s - now_s <= self._for_trials_s:
                    self._for_trials_s -= took_s - now_s
                    return size, 0.0
            elif (load.tokens + right) / took_s > rate:
                best, gain, rate = size, right, (load.tokens + right) / took_s
        return best, gain

    def _start(self, sequence: Sequence) -> Drafting:
        choice = sequence.request.decoding["drafter"]
        assert isinstance(choice.method, Drafter)
        context = DraftContext(
            vocabulary=self._vocabulary, memory=self._memory(sequence.request.cache_salt)
        )
        return choice.method.start(choice.parameters, sequence, context)

    def _memory(self, salt: str) -> dict[str, Any]:
        """What drafters keep for requests of that salt; the longest unused is forgotten."""
        memory = self._memories.setdefault(salt, {})
        self._memories.move_to_end(salt)
        if len(self._memories) > _MAX_MEMORIES:
            self._memories.popitem(last=False)
        return memory


def _reads_sparsely(branch: Branch) -> bool:
    """Whether its next row is one of a prompt that sees a part of the keys: guesses see all."""
    return branch.reading is not None and branch.reading.covers(branch.computed, 1)
