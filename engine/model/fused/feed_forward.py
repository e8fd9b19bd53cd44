"""A gated feed-forward block with one matrix for gate and up."""

from typing import Any

import torch
from torch import Tensor, nn

from ...adapters.sites import Origin
from .bound import BoundModule
from .linears import merged
from .observe import Call, matches


class FusedFeedForward(BoundModule):
    """down(activation(gate x) * (up x)). `names`: of the layers that `gate_up` is made of."""

    def __init__(
        self,
        names: tuple[str, ...],
        gate_up: nn.Linear,
        down: nn.Linear,
        activation: nn.Module,
    ) -> None:
        super().__init__()
        self.original_names = {"down": "down_proj"}
        outputs = torch.arange(gate_up.out_features).chunk(len(names))
        self.merged = {
            "gate_up": tuple(
                Origin(name=name, at=at) for name, at in zip(names, outputs, strict=True)
            )
        }
        self.gate_up = gate_up
        self.down = down
        self.is_silu = _is_silu(activation)
        self.activation = nn.SiLU() if self.is_silu else activation
        self.bind()

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` to the same."""
        calls = self.calls
        gate, up = calls["gate_up"](x).chunk(2, dim=-1)
        return calls["down"](calls["activation"](gate) * up)


def fused_feed_forward(module: Any, call: Call | None) -> FusedFeedForward | None:
    """The fused version of a gated block, if `module` is one; tried on a recorded call."""
    gate, up, down, together = (
        getattr(module, f"{name}_proj", None) for name in ("gate", "up", "down", "gate_up")
    )
    activation = getattr(module, "act_fn", getattr(module, "activation_fn", None))
    if call is None or type(down) is not nn.Linear or not isinstance(activation, nn.Module):
        return None
    names: tuple[str, ...] = ("gate_up_proj",)
    if type(gate) is nn.Linear and type(up) is nn.Linear:
        names = ("gate_proj", "up_proj")
        together = merged([gate.weight, up.weight], [gate.bias, up.bias])
    if type(together) is not nn.Linear:
        return None
    candidate = FusedFeedForward(names, together, down, activation)
    return candidate if matches(candidate, module, call) else None


def _is_silu(activation: nn.Module) -> bool:
    return type(activation).__name__ == "SiLUActivation"
