"""Records one small forward pass: the arguments and the output of every module."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TOKENS: Final = (5, 7, 9, 7, 11, 6)
_POSITIONS: Final = (0, 1, 2, 30, 4_100, 70_000)
_LOUD: Final = 30.0
_LOUD_TOLERANCE: Final = 1e-2
PART_TOLERANCE: Final = 1e-5
WHOLE_TOLERANCE: Final = 1e-4


logger = logging.getLogger(__name__)

Translate = Callable[[dict[str, Any]], dict[str, Any]]


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
    """A stand-in for a step: causal attention among the given rows, without a cache.

    Window, softcap and sinks are recorded but not applied: they do not affect what a module does
    before and after attention.
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
class ObservedPass:
    """A forward pass over six tokens. `calls`: the last call of each module that was called."""

    calls: dict[nn.Module, Call]
    shapes: dict[int, AttentionShape]
    given: dict[str, Any]
    logits: Tensor


def inputs(model: Any, step: DenseStep) -> dict[str, Any]:
    """Arguments of a model's forward pass for six tokens, some of them at far positions.

    They show what a model does only to queries far from the beginning (Ministral 3).
    """
    device = next(model.parameters()).device
    config = model.config.get_text_config()
    last = int(getattr(config, "max_position_embeddings", None) or len(_POSITIONS)) - 1
    return {
        "input_ids": torch.tensor([_TOKENS], device=device),
        "position_ids": torch.tensor([[min(at, last) for at in _POSITIONS]], device=device),
        "use_cache": False,
        "logits_to_keep": torch.arange(len(_TOKENS), device=device),
        "penstock_step": step,
    }


@torch.inference_mode()
def observe(model: Any) -> ObservedPass:
    """Run the model on a few tokens and record every call."""
    calls: dict[nn.Module, Call] = {}
    step = DenseStep()

    def record(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        calls[module] = Call(args=args, kwargs=kwargs, output=output)

    # Plain weights are not recorded: a record would keep them alive after their replacement.
    handles = [
        module.register_forward_hook(record, with_kwargs=True)
        for module in model.modules()
        if type(module) not in (nn.Linear, nn.Embedding)
    ]
    given = inputs(model, step)
    try:
        logits = model(**given).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return ObservedPass(calls=calls, shapes=step.shapes, given=given, logits=logits)


@torch.inference_mode()
def matches(
    candidate: nn.Module, module: nn.Module, call: Call, *, translate: Translate | None = None
) -> bool:
    """Whether a candidate returns what the module returned, also for much larger inputs.

    Large inputs show values that are clipped (`clip_qkv`). `translate`: turns keyword arguments
    into the candidate's. A candidate that fails to run, for any reason, does not match.
    """

    def answer(one: Call) -> Any:
        return candidate(*one.args, **(translate(one.kwargs) if translate else one.kwargs))

    try:
        if not agree(answer(call), call.output, PART_TOLERANCE):
            return False
        loud = _louder(module, call)
        # Scores far from each other amplify rounding: some rows may differ, but not most of them.
        return agree(answer(loud), loud.output, _LOUD_TOLERANCE, share=0.5)
    except Exception as error:
        logger.debug("%s: not replaced (%s)", type(module).__name__, error)
        return False


def _louder(module: nn.Module, call: Call) -> Call:
    """The same call, and the module's output, with larger hidden states."""
    args, kwargs = call.args, call.kwargs
    if args:
        args = (args[0] * _LOUD, *args[1:])
    else:
        kwargs = kwargs | {"hidden_states": kwargs["hidden_states"] * _LOUD}
    return Call(args=args, kwargs=kwargs, output=module(*args, **kwargs))


def agree(ours: Any, theirs: Any, tolerance: float, *, share: float = 1.0) -> bool:
    """Whether two results are equal up to rounding in at least this share of their rows.

    The error of a row is relative to its norm. Of a tuple, the first element counts, and the
    others must be None.
    """
    if isinstance(theirs, tuple | list):
        if not isinstance(ours, tuple) or len(ours) != len(theirs):
            return False
        if any(each is not None for each in theirs[1:]):
            return False
        return agree(ours[0], theirs[0], tolerance, share=share)
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return False
    if ours.shape != theirs.shape or not theirs.numel():
        return False
    error = (ours - theirs).norm(dim=-1)
    close = error <= tolerance * theirs.norm(dim=-1)
    return bool(close.float().mean() >= share)
