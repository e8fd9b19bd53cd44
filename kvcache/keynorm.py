"""Eviction by key norm (Devoto et al. 2024, arXiv:2406.11430): `keynorm`.

Keys of low L2 norm tend to receive much attention, so each head evicts those of highest norm. No
attention has to be observed. The paper keeps all keys of the first layers; here all layers keep
equally many.
"""

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from ..registry import STRICT
from .base import Amount, CachePolicy, HeldKeys, PositiveAmount, Retention, tokens_of


class KeyNormParameters(BaseModel):
    """`low`, `recent`: tokens (an integer) or a share of the prompt (0.1) that each head keeps.

    `low`: those whose keys have the lowest norm. `recent`: the newest. `interval`: tokens between
    two evictions.
    """

    model_config = STRICT

    low: Amount = 0.1
    recent: PositiveAmount = 0.1
    interval: int = Field(default=16, ge=1, le=1024)


class KeyNorm(CachePolicy[KeyNormParameters]):
    """Keeps keys of low norm and recent tokens."""

    name = "keynorm"
    parameters = KeyNormParameters
    summary = "Keep the keys of lowest L2 norm, and the newest; needs no attention weights."

    def retention(self, parameters: KeyNormParameters, prompt_tokens: int) -> Retention:
        """See `CachePolicy`."""
        return Retention(
            heavy=tokens_of(parameters.low, prompt_tokens),
            recent=tokens_of(parameters.recent, prompt_tokens),
            interval=parameters.interval,
        )

    def score(self, held: HeldKeys, parameters: KeyNormParameters) -> Tensor:
        """The negative norm of each key: the rotation by position does not change it."""
        layers = range(held.positions.shape[0])
        return torch.stack([-held.keys(layer).norm(dim=-1) for layer in layers])


KEY_NORM = KeyNorm()
