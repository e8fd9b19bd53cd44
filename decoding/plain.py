"""Plain decoding: the model's own distribution, one token a step."""

from typing import TYPE_CHECKING

from ..registry import NoParameters
from .target import Prompt, Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class Plain(Target[NoParameters]):
    """Changes nothing; it exists so that a request can name it."""

    name = "plain"
    parameters = NoParameters
    summary = "The model's own distribution, one token a step."

    def contexts(self, parameters: NoParameters, prompt: Prompt) -> None:
        """See `Target`."""

    def combine(self, logits_BRV: "Tensor", parameters: "Sequence[NoParameters]") -> "Tensor":
        """See `Target`."""
        return logits_BRV[0]


PLAIN = Plain()
