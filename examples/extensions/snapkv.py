"""SnapKV (Li et al. 2024, arXiv:2404.14469) as a KV policy of Penstock.

The prompt's last rows say which of its keys the answer will need.
"""

from pydantic import BaseModel, Field

from penstock.kvcache.base import MAX_TOKENS, Amount, CachePolicy, Observation, Retention, tokens_of
from penstock.registry import STRICT


class SnapKVParameters(BaseModel):
    """`keep`: keys that each head keeps, in tokens or as a share of the prompt.

    `window`: last tokens of the prompt; their attention ranks the keys before them, and their own
    keys are kept in addition.
    """

    model_config = STRICT

    keep: Amount = 0.25
    window: int = Field(default=32, ge=1, le=MAX_TOKENS)


class SnapKV(CachePolicy[SnapKVParameters]):
    """Keeps the keys that the prompt's last rows attended to most."""

    name = "snapkv"
    parameters = SnapKVParameters
    summary = "Keep the keys that the end of the prompt attends to most, and its last keys."

    def retention(self, parameters: SnapKVParameters, prompt_tokens: int) -> Retention:
        """See `CachePolicy`."""
        return Retention(
            heavy=tokens_of(parameters.keep, prompt_tokens),
            recent=parameters.window,
            interval=16,
        )

    def observe(self, parameters: SnapKVParameters) -> Observation:
        """The attention of the prompt's last rows, and of the answer's."""
        return Observation(prompt_window=parameters.window)

    def fused(self, parameters: SnapKVParameters) -> bool:
        """The score is the attention observed."""
        return True


SNAPKV = SnapKV()
