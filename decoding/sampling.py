"""What sampling knows of a row: its resolved parameters and its history."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .rule_state import RuleState


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What decides which tokens may come, whatever is drawn; neutral values switch a rule off.

    `allowed_token_ids`: all others are forbidden. `bad_words`: UTF-8 that must not occur in the
    text, however it is spelled in tokens; `shows_special`: whether special ones are part of it.
    `suppressed_until_min`: stop tokens, forbidden until `min_tokens` are generated.
    """

    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[bytes, ...] = ()
    shows_special: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    suppressed_until_min: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @property
    def penalises(self) -> bool:
        """Whether tokens count that have been there already."""
        return bool(
            self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty
        )


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
    """What the sampler needs to know of a sequence whose next token it chooses.

    `rule_state`: what the rules remember of its tokens; kept by the sampler, None at first.
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
        """How many of `tokens` were there when it began."""
        ...

    @property
    def answer_start(self) -> int:
        """Where the answer begins: the part of a search continues one that has begun before it."""
        ...
