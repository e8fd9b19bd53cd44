"""What a request says about which tokens may come."""

from dataclasses import dataclass


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
