"""Makes a loaded transformers model lean, in place: fewer and larger operations, the same logits.

A module is recognised by its parts and then by what it computes: a lean twin takes its place only
where it returns what the module returned in a recorded call. All else stays as it is.
"""

import logging

import torch
from torch import nn

from .attention import LeanRotary, Recognised, lean_attention, recognise
from .bound import bind_all
from .decoder import lean_decoder, lean_layer
from .feed_forward import lean_feed_forward
from .norms import lean_norm
from .observe import DenseStep, Observation, agree, inputs, observe
from .replace import replace

logger = logging.getLogger(__name__)


class RewriteError(RuntimeError):
    """The whole model differs although every part agreed."""


@torch.inference_mode()
def rewrite(model: nn.Module) -> nn.Module:
    """Return the lean model. `model` is changed and must not be used any more.

    Attention must go through our interface, and weights be float32.

    Raises:
        RewriteError: the result is wrong; load the model again and leave it alone.
    """
    seen = observe(model)
    attentions = _rewrite_attention(model, seen)
    blocks = replace(model, lambda module: lean_feed_forward(module, seen.calls.get(module)))
    norms = replace(model, lambda module: lean_norm(module, seen.calls.get(module)))
    again = observe(model)
    layers = replace(model, lambda module: lean_layer(module, again.calls.get(module)))
    bind_all(model)
    decoder = lean_decoder(model)
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


def _gives(model: nn.Module, seen: Observation) -> bool:
    logits = model(**inputs(seen.logits.device, DenseStep())).logits[0]
    return agree(logits, seen.logits)


def _rewrite_attention(model: nn.Module, seen: Observation) -> int:
    """All attention modules or none: they share the rotary embedding."""
    modules = [module for module in seen.calls if getattr(module, "layer_idx", None) is not None]
    attentions = [m for m in modules if isinstance(seen.calls[m].output, tuple)]
    known: dict[nn.Module, Recognised] = {}
    for module in attentions:
        found = recognise(module, seen)
        if found is None:
            return 0
        known[module] = found
    if len(known) != len(seen.shapes):
        return 0
    given = [seen.calls[m].kwargs.get("position_embeddings") for m in known]
    rotary = {
        module: LeanRotary(module, call.output)
        for module, call in seen.calls.items()
        if isinstance(call.output, tuple) and any(call.output is each for each in given)
    }
    replace(model, rotary.get)
    return replace(model, lambda m: lean_attention(m, known[m], seen) if m in known else None)
