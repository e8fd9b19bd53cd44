"""What sampling knows of a row: its resolved parameters and its history."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Resolved sampling parameters of one choice; neutral values switch a rule off.

    `suppressed_until_min`: stop tokens, forbidden until `min_tokens` are generated.
    `bad_words`: token sequences that must not occur. `seed`: any 64-bit integer.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    suppressed_until_min: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    seed: int = 0

    def unruled(self) -> "Sampling":
        """The same without rules about particular tokens."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
        )


class Row(Protocol):
    """What the sampler needs to know of a sequence whose next token it chooses."""

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
        """How many of `tokens` are the prompt."""
        ...
