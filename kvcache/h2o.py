"""Heavy-hitter eviction (Zhang et al. 2023, arXiv:2306.14048): `h2o`.

A few keys receive most of the attention. Each head keeps these keys and the newest ones.
"""

from typing import Literal

from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from ..registry import STRICT
from .base import (
    MAX_TOKENS,
    Amount,
    CachePolicy,
    HeldKeys,
    Observation,
    PositiveAmount,
    Retention,
    tokens_of,
)


class H2OParameters(BaseModel):
    """`heavy`, `recent`: tokens (an integer) or a share of the prompt (0.1) that each head keeps.

    `sink`: first tokens that are never evicted; they count as heavy ones. `interval`: tokens
    between two evictions; 1 is the paper's rule. `score`: the sum of attention received, its mean
    over the tokens that could see the key, or a sum that halves every `half_life` tokens.
    `score_window`: of the prompt, only the attention of that many last tokens counts, as in SnapKV
    (Li et al. 2024, arXiv:2404.14469), so that cached prefixes can be used; null: of all tokens.
    """

    model_config = STRICT

    heavy: Amount = 0.1
    recent: PositiveAmount = 0.1
    sink: int = Field(default=4, ge=0, le=1024)
    interval: int = Field(default=16, ge=1, le=1024)
    score: Literal["sum", "mean", "decay"] = "sum"
    half_life: int = Field(default=256, ge=1, le=MAX_TOKENS)
    score_window: int | None = Field(default=None, ge=1, le=MAX_TOKENS)

    @model_validator(mode="after")
    def _holds_something(self) -> "H2OParameters":
        if isinstance(self.heavy, int) and self.heavy < self.sink:
            raise ValueError(
                f"heavy is {self.heavy} tokens, fewer than the {self.sink} of sink, which it has "
                "to hold; raise heavy or lower sink"
            )
        return self


class H2O(CachePolicy[H2OParameters]):
    """Keeps heavy hitters and recent tokens."""

    name = "h2o"
    parameters = H2OParameters
    summary = (
        "Keep the keys that received most attention, and the newest; a fraction of the memory."
    )

    def retention(self, parameters: H2OParameters, prompt_tokens: int) -> Retention:
        """See `CachePolicy`."""
        return Retention(
            heavy=max(parameters.sink, tokens_of(parameters.heavy, prompt_tokens)),
            recent=tokens_of(parameters.recent, prompt_tokens),
            sink=parameters.sink,
            interval=parameters.interval,
        )

    def observe(self, parameters: H2OParameters) -> Observation:
        """All attention, or that of the newest tokens most."""
        return Observation(
            half_life=parameters.half_life if parameters.score == "decay" else None,
            prompt_window=parameters.score_window,
        )

    def score(self, held: HeldKeys, parameters: H2OParameters) -> Tensor:
        """The attention received, or its mean over the tokens that could see the key."""
        if parameters.score == "mean":
            return held.attention / held.observers
        return held.attention

    def fused(self, parameters: H2OParameters) -> bool:
        """Means are not."""
        return parameters.score != "mean"


H2O_POLICY = H2O()
