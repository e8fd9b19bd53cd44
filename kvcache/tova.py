"""Token omission via attention (Oren et al. 2024, arXiv:2401.06104): `tova`.

The key goes that the newest token attends to least. Attention is averaged over the heads of a
layer, so all heads of a layer hold the keys of the same tokens. The newest key always stays; in the
paper it may go as well.
"""

from pydantic import BaseModel, Field
from torch import Tensor

from ..registry import STRICT
from .base import CachePolicy, HeldKeys, Observation, PositiveAmount, Retention, tokens_of


class TovaParameters(BaseModel):
    """`keep`: tokens (an integer) or a share of the prompt (0.2) that each layer keeps.

    `interval`: tokens between two evictions; 1 is the paper's rule.
    """

    model_config = STRICT

    keep: PositiveAmount = 0.2
    interval: int = Field(default=16, ge=1, le=1024)


class Tova(CachePolicy[TovaParameters]):
    """Keeps the keys that the newest token attends to most."""

    name = "tova"
    parameters = TovaParameters
    summary = (
        "Keep the keys that the newest token attends to most, the same in all heads of a layer."
    )

    def retention(self, parameters: TovaParameters, prompt_tokens: int) -> Retention:
        """See `CachePolicy`."""
        keep = tokens_of(parameters.keep, prompt_tokens)
        return Retention(heavy=keep - 1, recent=1, interval=parameters.interval)

    def observe(self, parameters: TovaParameters) -> Observation:
        """The newest token's attention; of the prompt, that of its last token."""
        return Observation(half_life=0, prompt_window=1)

    def score(self, held: HeldKeys, parameters: TovaParameters) -> Tensor:
        """The sum over a layer's heads ranks as their average does: `[layers, 1, held]`."""
        return held.attention.sum(dim=1, keepdim=True)


TOVA = Tova()
