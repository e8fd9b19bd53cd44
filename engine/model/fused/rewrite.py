"""Fuses a loaded transformers model in place: fewer and larger operations, the same logits.

A module is recognised by its parts and then by what it computes: a fused version replaces it only
if it returns what the module returned in a recorded call. Other modules are not changed.
"""

import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from .attention import FusedRotary, Recognised, fused_attention, recognise
from .decoder import fused_decoder, fused_layer
from .feed_forward import fused_feed_forward
from .norms import fused_norm
from .observe import WHOLE_TOLERANCE, Call, DenseStep, ObservedPass, agree, observe
from .replace import Replacer, replace

logger = logging.getLogger(__name__)


class RewriteError(RuntimeError):
    """The rewritten model's logits differ although every part agreed."""


@torch.inference_mode()
def rewrite(model: Any) -> nn.Module:
    """Return the fused model. `model` is changed and must not be used any more.

    Attention must go through our interface, and weights must be float32. Replaced weights are freed
    as soon as they are copied: memory for one module more than the model's is enough.

    Raises:
        RewriteError: the result is wrong.
        Exception: any unexpected one. In both cases, load the model again and do not rewrite it.
    """
    seen = observe(model)
    attentions = _rewrite_attention(model, seen)
    blocks = replace(model, _tried(fused_feed_forward, seen))
    norms = replace(model, _tried(fused_norm, seen))
    seen.calls.clear()
    again = observe(model)
    layers = replace(model, _tried(fused_layer, again))
    again.calls.clear()
    decoder = fused_decoder(model)
    lean = model if decoder is None or not _gives(decoder, seen) else decoder
    if not _gives(lean, seen):
        raise RewriteError("the rewritten model's logits differ from the original's")
    logger.info(
        "rewritten for speed: %d attention modules, %d feed-forward blocks, %d norms, %d layers%s",
        attentions,
        blocks,
        norms,
        layers,
        ", the decoder" if lean is decoder else "",
    )
    return lean


def _tried(
    make: Callable[[nn.Module, Call | None], nn.Module | None], seen: ObservedPass
) -> Replacer:
    """A `Replacer` for `replace`: makes a module's fused version and forgets its call."""

    def fused(module: nn.Module) -> nn.Module | None:
        found = make(module, seen.calls.get(module))
        if found is not None:
            del seen.calls[module]
        return found

    return fused


def _gives(model: nn.Module, seen: ObservedPass) -> bool:
    logits = model(**seen.given | {"penstock_step": DenseStep()}).logits[0]
    return agree(logits, seen.logits, WHOLE_TOLERANCE)


def _rewrite_attention(model: nn.Module, seen: ObservedPass) -> int:
    """Fuse all attention modules or none: they share the rotary embedding. Returns how many."""
    known: WeakKeyDictionary[nn.Module, Recognised] = WeakKeyDictionary()
    for module, call in seen.calls.items():
        if getattr(module, "layer_idx", None) is None or not isinstance(call.output, tuple):
            continue
        found = recognise(module, seen)
        if found is None:
            return 0
        known[module] = found
    if len(known) != len(seen.shapes):
        return 0
    given = [seen.calls[m].kwargs.get("position_embeddings") for m in known]
    rotary = {
        module: FusedRotary(module, call.output)
        for module, call in seen.calls.items()
        if isinstance(call.output, tuple) and any(call.output is each for each in given)
    }
    replace(model, rotary.get)

    def fused(module: nn.Module) -> nn.Module | None:
        if module not in known:
            return None
        lean = fused_attention(module, known[module], seen)
        del seen.calls[module]
        return lean

    return replace(model, fused)
