"""A thought whose keys and values are dropped once it has ended (`kv_cache.drop_thinking`)."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field

from ...decoding.constraint.thinking import Thinking


@dataclass(slots=True, kw_only=True)
class DroppedThought:
    """Where the thought of one context is, by the positions of its tokens.

        prompt  begin  thought . . . . . .  end  answer
                       `first`              `end`

    The tokens from `first` to `end` - 1 are dropped when the keys of the token at `end` have been
    computed: that token is the last one to see them, and the tokens around the thought stay.

    `first`: None: no thought has begun. `end`: None: it goes on, or there is none. `dropped`:
    whether the keys are gone. `answer_start`: position of the answer's first token. `window`:
    tokens of the model's widest sliding window; 0: it has none.
    """

    thinking: Thinking
    answer_start: int
    window: int = 0
    first: int | None = None
    end: int | None = None
    dropped: bool = False
    _read: int = field(init=False)
    _over: bool = False

    def __post_init__(self) -> None:
        self._read = self.answer_start
        if self._opened and not self.thinking.opening:
            self.first = self.answer_start

    @property
    def _opened(self) -> bool:
        return self.thinking.opened or self.thinking.begin is None

    @property
    def settled(self) -> bool:
        """Whether nothing will be dropped any more: it has been, or there is no thought."""
        return self.dropped or (self._over and self.end is None)

    @property
    def evicted(self) -> int:
        """How many tokens have been dropped."""
        return self.end - self.first if self.dropped and self.first is not None and self.end else 0

    @property
    def limit(self) -> int | None:
        """Tokens that may be computed before the thought is dropped; None: any number."""
        return None if self.end is None or self.dropped else self.end + 1

    def fork(self) -> "DroppedThought":
        """The same, for a choice that may continue differently."""
        return copy(self)

    def read(self, tokens: Sequence[int]) -> None:
        """Look at those of a context's tokens that are new."""
        while not self._over and self._read < len(tokens):
            self._take(tokens[self._read])

    def ends_within(self, tokens: Sequence[int]) -> int | None:
        """Which of the next tokens ends the thought, counted from 1; None: none does."""
        ahead = copy(self)
        for count, token in enumerate(tokens, start=1):
            if ahead._over:
                return None
            ahead._take(token)
            if ahead.end is not None:
                return count
        return None

    def is_due(self, computed: int) -> bool:
        """Whether the keys must go now that those of the first `computed` tokens are there."""
        return self.limit == computed

    def is_seen_from(self, position: int) -> bool:
        """Whether the gap it has left is in the sliding window of a token at `position`."""
        return self.evicted > 0 and self.end is not None and position - self.window < self.end - 1

    def _take(self, token: int) -> None:
        at, opening = self._read - self.answer_start, self.thinking.opening
        self._read += 1
        if self.first is not None:
            if token == self.thinking.end:
                self.end, self._over = self._read - 1, True
        elif token != (opening[at] if self._opened else self.thinking.begin):
            self._over = True
        elif not self._opened or at + 1 == len(opening):
            self.first = self._read
