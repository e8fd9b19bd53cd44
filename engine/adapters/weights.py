"""An adapter's matrices, as they were read."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LowRankPair:
    """What is added to a linear layer `[N, K]`: (x A^T) B^T.

    down: A, float32 `[r, K]`. up: B with the adapter's scale, float32 `[N, r]`.
    """

    down: Tensor
    up: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdapterWeights:
    """`layers`: by the names of the model's modules, such as model.layers.0.self_attn.q_proj.

    `rank`: the largest of a layer. `source`: how messages call it.
    """

    source: str
    rank: int
    layers: Mapping[str, LowRankPair]
