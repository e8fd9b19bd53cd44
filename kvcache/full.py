"""The default policy: every key and value stays until the sequence ends."""

from ..registry import Choice, NoParameters
from .base import CachePolicy


class Full(CachePolicy[NoParameters]):
    """Evicts nothing."""

    name = "full"
    parameters = NoParameters
    summary = "Keep every key and value until the sequence ends."

    def retention(self, parameters: NoParameters, prompt_tokens: int) -> None:
        """See `CachePolicy`."""


FULL = Full()
KEEP_EVERYTHING = Choice(method=FULL, parameters=NoParameters())
"""What requests get that name no policy."""
