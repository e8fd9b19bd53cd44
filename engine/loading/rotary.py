"""Rotary embeddings (RoPE) scaled beyond the length that a model was trained with.

| kind | served by default | with --max-model-len up to |
| --- | --- | --- |
| default, llama3 | max_position_embeddings | the same |
| yarn | factor x original, or max_position_embeddings where that is more | the same |
| linear | max_position_embeddings | factor x max_position_embeddings |
| dynamic | max_position_embeddings | factor x max_position_embeddings |
| longrope (su) | original | max_position_embeddings, factor x original |

Angles of dynamic and longrope depend on the length of a sequence, in a batch that of the longest
one. A sequence's text would then depend on the rest of its batch, and earlier keys would have been
rotated by other angles. So the angles are fixed when the model is loaded, to those of the longest
sequence served: transformers' own for a sequence of that length.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ...errors import UnsupportedModelError

_FIXED: Final = "default"
"""The kind whose angles transformers never recomputes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Context lengths in tokens: `usual` by default, `most` with --max-model-len.

    `why`: where `most` comes from.
    """

    usual: int
    most: int
    why: str


def rotary_reach(text_config: Any, own: int) -> Reach:
    """How far the model's positions reach. `own`: the context that it declares."""
    reaches = [_reach(text_config, parameters, own) for parameters in _parameters(text_config)]
    if not reaches:
        return Reach(usual=own, most=own, why="its declared context")
    shortest = min(reaches, key=lambda reach: reach.most)
    return Reach(usual=min(reach.usual for reach in reaches), most=shortest.most, why=shortest.why)


def _parameters(text_config: Any) -> Iterator[Mapping[str, Any]]:
    """Rotary parameters: one set for all layers, or one for each kind of layer."""
    found = getattr(text_config, "rope_parameters", None)
    if not isinstance(found, dict):
        return
    parameters = cast(dict[str, Any], found)
    if "rope_type" in parameters:
        yield parameters
        return
    for each in parameters.values():
        if isinstance(each, dict):
            yield cast(dict[str, Any], each)


def _reach(text_config: Any, parameters: Mapping[str, Any], own: int) -> Reach:
    kind = str(parameters.get("rope_type"))
    factor = float(parameters.get("factor") or 1.0)
    declared = parameters.get("original_max_position_embeddings") or getattr(
        text_config, "original_max_position_embeddings", None
    )
    original = int(declared or own)
    scaled = int(factor * original)
    if kind == "yarn":
        most = max(own, scaled)
        return Reach(usual=most, most=most, why=f"yarn: {factor:g} x {original}")
    if kind == "longrope":
        most = max(own, scaled)
        return Reach(usual=min(original, own), most=most, why=f"longrope over {original}")
    if kind in ("linear", "dynamic"):
        return Reach(usual=own, most=max(own, scaled), why=f"{kind}: {factor:g} x {original}")
    return Reach(usual=own, most=own, why="its declared context")


def fix_rotary(model: nn.Module, text_config: Any, tokens: int) -> None:
    """Fix angles that depend on a sequence's length to those for `tokens`.

    Raises:
        UnsupportedModelError: the angles still depend on the length.
    """
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for name, module in modules:
        kinds: Any = getattr(module, "rope_type", None)
        if isinstance(kinds, str) and _depends(kinds):
            _fix(module, kinds, tokens, layer_type=None)
            module.rope_type = _FIXED
        elif isinstance(kinds, dict) and any(map(_depends, cast(dict[str, str], kinds).values())):
            fixed = cast(dict[str, str], dict(kinds))  # pyright: ignore[reportUnknownArgumentType]
            for layer_type, kind in fixed.items():
                if _depends(kind):
                    _fix(module, kind, tokens, layer_type=layer_type)
                    fixed[layer_type] = _FIXED
            module.rope_type = fixed
        else:
            continue
        _check(name, module, text_config, tokens)


def _depends(kind: str) -> bool:
    return kind == "longrope" or "dynamic" in kind


def _fix(module: Any, kind: str, tokens: int, *, layer_type: str | None) -> None:
    prefix = "" if layer_type is None else f"{layer_type}_"
    buffer: torch.Tensor = getattr(module, f"{prefix}inv_freq")
    options = {} if layer_type is None else {"layer_type": layer_type}
    frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](
        module.config, buffer.device, seq_len=tokens, **options
    )
    module.register_buffer(f"{prefix}inv_freq", frequencies.to(buffer), persistent=False)
    setattr(module, f"{prefix}attention_scaling", scaling)


def _check(name: str, module: Any, text_config: Any, tokens: int) -> None:
    """Check that angles are fixed: some architectures compute them from the length themselves."""
    kinds: Any = module.rope_type
    options = [{"layer_type": kind} for kind in kinds] if isinstance(kinds, dict) else [{}]  # pyright: ignore[reportUnknownVariableType]
    buffer = next(module.buffers())
    x = torch.zeros(1, 1, 1, device=buffer.device)
    short, long = (
        torch.tensor([[0, 1, last]], device=buffer.device) for last in (2, max(2, tokens - 1))
    )
    for option in options:
        with torch.inference_mode():
            alone, beside = (module(x, ids, **option) for ids in (short, long))
        if any(not torch.equal(a[:, :2], b[:, :2]) for a, b in zip(alone, beside, strict=True)):
            raise UnsupportedModelError(
                f"{text_config.model_type} cannot be served for {tokens} tokens: the angles of "
                f"{name} depend on the longest sequence of a batch; lower --max-model-len"
            )
