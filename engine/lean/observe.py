"""One small forward pass, watched: what every module was given and what it returned."""

from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TOKENS: Final = (5, 7, 9, 7, 11, 6)
_POSITIONS: Final = (0, 1, 2, 3, 4, 5)
_TOLERANCE: Final = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """What one layer hands to attention. `options`: scale, window, softcap and sinks."""

    heads: int
    kv_heads: int
    key_size: int
    value_size: int
    options: dict[str, Any]


@dataclass(slots=True)
class DenseStep:
    """Stands in for a step: causal attention among the rows given, without a cache.

    Window, softcap and sinks are recorded but not applied: they change nothing about what a module
    does before and after attention.
    """

    shapes: dict[int, AttentionShape] = field(default_factory=dict)

    def __call__(
        self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, **options: Any
    ) -> Tensor:
        """Return `[T, H, Dv]`."""
        self.shapes[layer] = AttentionShape(
            heads=q_THD.shape[1],
            kv_heads=k_THD.shape[1],
            key_size=k_THD.shape[2],
            value_size=v_THD.shape[2],
            options=options,
        )
        q, k, v = (each.transpose(0, 1)[None] for each in (q_THD, k_THD, v_THD))
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=options["scale"], enable_gqa=True
        )
        return out[0].transpose(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A pass over six tokens. `calls`: the last call of each module that was called."""

    calls: dict[nn.Module, Call]
    shapes: dict[int, AttentionShape]
    logits: Tensor


def inputs(device: torch.device, step: DenseStep) -> dict[str, Any]:
    """Arguments of a model's forward pass for six tokens."""
    return {
        "input_ids": torch.tensor([_TOKENS], device=device),
        "position_ids": torch.tensor([_POSITIONS], device=device),
        "use_cache": False,
        "logits_to_keep": torch.arange(len(_TOKENS), device=device),
        "penstock_step": step,
    }


@torch.inference_mode()
def observe(model: nn.Module) -> Observation:
    """Run the model on a few tokens and record every call."""
    calls: dict[nn.Module, Call] = {}
    step = DenseStep()

    def record(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        calls[module] = Call(args=args, kwargs=kwargs, output=output)

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in model.modules()]
    try:
        logits = model(**inputs(next(model.parameters()).device, step)).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return Observation(calls=calls, shapes=step.shapes, logits=logits)


@torch.inference_mode()
def matches(candidate: nn.Module, call: Call) -> bool:
    """Whether a candidate gives what was recorded. One that cannot run does not."""
    try:
        return agree(candidate(*call.args, **call.kwargs), call.output)
    except (RuntimeError, TypeError):
        return False


def agree(ours: Any, theirs: Any) -> bool:
    """Whether two results are the same but for rounding in float32 (relative Euclidean norm)."""
    if isinstance(theirs, tuple | list):
        return isinstance(ours, tuple) and agree(ours[0], theirs[0])
    if not isinstance(ours, Tensor) or ours.shape != theirs.shape:
        return False
    return bool((ours - theirs).norm() <= _TOLERANCE * theirs.norm())
