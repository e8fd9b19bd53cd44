"""The waiting queue of one flow, and which sequence is next.

Order: by priority, then short prompts before long ones, then arrival. No sequence starves: of four
that are admitted one is the oldest, whatever its priority and length.
"""

from bisect import bisect_left, insort
from typing import Final

from ..state.sequence import Sequence

_PASSED: Final = 3
"""How many may be admitted in a row before the oldest."""

Order = tuple[int, int, int, int]
"""Priority, length class, arrival, choice."""


class WaitingLine:
    """Waiting sequences by their order and by their age; `tokens`: the sum of their lengths.

    `step_tokens`: prompts that one step can read count as equally long, others by doublings.
    """

    def __init__(self, step_tokens: int) -> None:
        self._step_tokens = step_tokens
        self._by_order: list[tuple[Order, Sequence]] = []
        self._by_age: list[tuple[int, int]] = []
        self._passed = 0
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._by_order)

    @property
    def sequences(self) -> list[Sequence]:
        """All of them, in order."""
        return [sequence for _, sequence in self._by_order]

    def push(self, sequence: Sequence) -> None:
        """Add a sequence."""
        insort(self._by_order, (self._order(sequence), sequence))
        insort(self._by_age, _age(sequence))
        self.tokens += len(sequence.tokens)

    def pop(self) -> Sequence:
        """Take out the next one."""
        at = 0
        if self._passed >= _PASSED:
            oldest = self._by_age[0]
            at = next(i for i, (_, s) in enumerate(self._by_order) if _age(s) == oldest)
        return self._take(at)

    def admitted(self, sequence: Sequence) -> None:
        """Record that a sequence which was taken out has been admitted."""
        oldest = not self._by_age or _age(sequence) < self._by_age[0]
        self._passed = 0 if oldest else self._passed + 1

    def remove(self, sequence: Sequence) -> bool:
        """Take out this sequence; False: it does not wait here."""
        order = self._order(sequence)
        at = bisect_left(self._by_order, order, key=lambda item: item[0])
        if at == len(self._by_order) or self._by_order[at][1] is not sequence:
            return False
        self._take(at)
        return True

    def _take(self, at: int) -> Sequence:
        _, sequence = self._by_order.pop(at)
        del self._by_age[bisect_left(self._by_age, _age(sequence))]
        self.tokens -= len(sequence.tokens)
        return sequence

    def _order(self, sequence: Sequence) -> Order:
        # A sequence that has begun to answer was preempted, and counts as short.
        steps = 0 if sequence.has_output else (len(sequence.tokens) - 1) // self._step_tokens
        return (sequence.request.priority, steps.bit_length(), sequence.arrival, sequence.index)


def _age(sequence: Sequence) -> tuple[int, int]:
    return sequence.arrival, sequence.index
