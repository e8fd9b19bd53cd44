"""A request's rules on logits: which tokens may come, biases and penalties."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Edits of the logits that come before any sampling filter; neutral values switch a rule off.

    `allowed_token_ids`: all others are forbidden. `bad_words`: UTF-8 that must not occur in the
    text, however it is tokenised; `shows_special`: whether the text shows special tokens.
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
        """Whether a penalty depends on the tokens so far."""
        return bool(
            self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty
        )
