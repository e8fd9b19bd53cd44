"""How many guesses each sequence verifies in the next step: what promises most tokens a second."""

from collections import OrderedDict
from collections.abc import Sequence as List
from typing import Any, Final

from ..decoding.base import DraftContext, Drafter, Drafting, Vocabulary
from .pace import Pace
from .sequence import Sequence

_MAX_MEMORIES: Final = 8
_MARGIN: Final = 1.03
"""How much better a draft has to be: estimates are noisy, and the best of several flatters."""
_SAMPLING_BYTES: Final = 2 << 30
_BYTES_PER_LOGIT: Final = 6 * 4
_PATIENCE: Final = 4
_LONGEST_PAUSE: Final = 8


class DraftPlanner:
    """Plans the drafts of a step. `pace` tells what rows cost; `max_rows`: of a step.

    Drafts are wishes: the scheduler grants what its rows and pages leave.
    """

    def __init__(self, pace: Pace, vocabulary: Vocabulary, max_rows: int) -> None:
        self._pace = pace
        self._vocabulary = vocabulary
        # Every guess is sampled, and sampling takes some copies of a row of logits.
        self._max_rows = min(max_rows, _SAMPLING_BYTES // (_BYTES_PER_LOGIT * vocabulary.size))
        self._memories: OrderedDict[str, dict[str, Any]] = OrderedDict()

    def plan(self, running: List[Sequence]) -> None:
        """Set `draft` of all that decode and have a drafter.

        Guesses are added where they promise most: the tokens that the step will bring, by the time
        that it will take. So a lone sequence drafts more than one of many.
        """
        drafting = [s for s in running if "drafter" in s.request.decoding]
        if not drafting:
            return
        rows = sum(branch.remaining for s in running for branch in s.branches)
        tokens = float(sum(s.decodes for s in running))
        drafts = 0
        most = self._max_rows - rows
        for sequence in drafting:
            sequence.draft = None
            # Choices that fork off next get their first token together, without guesses.
            if not sequence.decodes or sequence.unborn or most <= 0:
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
            sizes = sequence.drafting.sizes(limit)
            if sequence.drafting.fixed:
                best, gain = sizes[-1] if sizes else (0, 0.0)
                best = min(best, most // contexts)
            else:
                sizes = [(size, right) for size, right in sizes if size * contexts <= most]
                best, gain = self._best(sizes, tokens, rows, drafts, contexts)
                _pause(sequence, is_miss=best == 0)
            if best:
                sequence.draft = sequence.drafting.propose(best, limit)
                rows += len(sequence.draft.tokens) * contexts
                most -= len(sequence.draft.tokens) * contexts
                tokens += min(gain, best)
                drafts += contexts

    def _best(
        self,
        sizes: List[tuple[int, float]],
        tokens: float,
        rows: int,
        drafts: int,
        contexts: int,
    ) -> tuple[int, float]:
        """The size that adds most to a step's tokens a second; (0, 0) where none adds to it."""
        best, gain = 0, 0.0
        rate = _MARGIN * tokens / self._pace.seconds(rows, drafts)
        for size, right in sizes:
            took = self._pace.seconds(rows + size * contexts, drafts + contexts)
            if (tokens + right) / took > rate:
                best, gain, rate = size, right, (tokens + right) / took
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


def _pause(sequence: Sequence, *, is_miss: bool) -> None:
    """Ask a drafter that promises nothing more seldom: making guesses takes time as well."""
    sequence.draft_misses = sequence.draft_misses + 1 if is_miss else 0
    if sequence.draft_misses > _PATIENCE:
        sequence.draft_pause = min(2 ** (sequence.draft_misses - _PATIENCE), _LONGEST_PAUSE)
