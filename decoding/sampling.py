"""What the sampler reads of a row: its resolved parameters and its history."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .rules import Rules

if TYPE_CHECKING:
    from .rule_state import RuleState


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Resolved sampling parameters of one choice; neutral values switch a filter off.

    `rules`: shared by all choices of a request; None: there are none. `seed`: any 64-bit integer.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    rules: Rules | None = None
    seed: int = 0

    @property
    def min_tokens(self) -> int:
        """Tokens before which nothing ends the answer."""
        return 0 if self.rules is None else self.rules.min_tokens


class Row(Protocol):
    """A sequence whose next token the sampler chooses.

    `rule_state`: the state of its rules; set by the sampler, None at first.
    """

    rule_state: "RuleState | None"

    @property
    def sampling(self) -> Sampling:
        """The row's parameters."""
        ...

    @property
    def tokens(self) -> Sequence[int]:
        """Prompt and answer so far; the next token's position is its length."""
        ...

    @property
    def prompt_length(self) -> int:
        """How many of `tokens` were there when the sequence began."""
        ...

    @property
    def answer_start(self) -> int:
        """Where the answer begins; below `prompt_length` if a search continues an answer."""
        ...
