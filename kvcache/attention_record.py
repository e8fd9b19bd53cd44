"""What the rows of one context attended to in one step, for policies that score keys by it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .store import Stored


@dataclass(slots=True, kw_only=True)
class AttentionRecord:
    """The attention weights of one context's rows in one step, layer by layer.

    `depths`: how many tokens each row is after row 0. `votes`: float32 `[R]`, the weight of each
    row's attention, if all rows are certain to stay (a chunk of a prompt); None if some are draft
    tokens.

    `weights`: by layer, `[K, keys]` with votes, `[K, R, keys]` without; the rows' own keys are the
    last R. `of_all_layers`: the same as one tensor, where all layers were computed in one call.
    `stored`: by layer, `[K, R, D]`, keys and values of draft tokens of a context in slots; they are
    written once it is known which are accepted."""

    depths: list[int]
    votes: Tensor | None
    weights: list[Tensor] = field(default_factory=list)
    of_all_layers: Tensor | None = None
    stored: list[Stored] = field(default_factory=list)

    @property
    def stacked(self) -> Tensor | None:
        """The weights of all layers, `[layers, K, ...]`; None: nobody asked for them."""
        if self.of_all_layers is not None or not self.weights:
            return self.of_all_layers
        return torch.stack(self.weights)
