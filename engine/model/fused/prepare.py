"""Prepares a loaded model for serving: rewrites it, gives its weights their format, checks it."""

import logging
from typing import Any

import torch
from torch import nn

from ....errors import ConfigurationError
from ...weights.base import WeightFormat
from ...weights.blocks import spread
from .compiled import compiled_decoder
from .experts import pack_experts
from .linears import pack_linears, store_linears, usable_library
from .observe import WHOLE_TOLERANCE, ObservedPass, agree, observe
from .rewrite import rewrite

logger = logging.getLogger(__name__)


def make_fused(model: Any, weights: WeightFormat) -> nn.Module | None:
    """The model in its fastest form. `model` is changed and must not be used any more.

    None where that failed, which any model may cause: load it again and call `store_weights`.

    Raises:
        ConfigurationError: the model cannot be served with weights of this format.
    """
    if not _rewritable(model):
        store_weights(model, weights)
        return model
    try:
        seen = observe(model)
        seen.calls.clear()
        model = _faster(model, weights)
        _check(model, seen, weights)
    except Exception as error:
        logger.warning(
            "the model runs as transformers has it, which is slower: %s: %s",
            type(error).__name__,
            error,
            exc_info=logger.isEnabledFor(logging.DEBUG),
        )
        return None
    return model


def _faster(model: nn.Module, weights: WeightFormat) -> nn.Module:
    """Rewrite what is recognised, then compile the whole decoder or only its linear layers."""
    model = rewrite(model)
    compiled = usable_library()
    whole = None if compiled is None else compiled_decoder(compiled, model, weights)
    if whole is not None:
        return whole
    store_linears(model, weights, compiled)
    if compiled is not None:
        pack_linears(model, compiled)
        pack_experts(model, compiled, weights)
    spread(model)
    return model


def store_weights(model: Any, weights: WeightFormat) -> None:
    """Give the linear layers of a model that is not rewritten their format.

    Raises:
        ConfigurationError: it does not run with them, or its logits are not finite.
    """
    compiled = usable_library() if _rewritable(model) else None
    try:
        if store_linears(model, weights, compiled):
            _check(model, observe(model), weights)
    except Exception as error:
        raise ConfigurationError(
            f"the model cannot be served with --quantization {weights.name} "
            f"({type(error).__name__})"
        ) from error


def _rewritable(model: nn.Module) -> bool:
    parameter = next(model.parameters(), None)
    return (
        parameter is not None
        and parameter.device.type == "cpu"
        and parameter.dtype == torch.float32
    )


@torch.inference_mode()
def _check(model: nn.Module, seen: ObservedPass, weights: WeightFormat) -> None:
    """Compare with the logits recorded before; of lossy weights, check that they are finite."""
    logits = model(**seen.given).logits[0]
    if not torch.isfinite(logits).all() or logits.shape != seen.logits.shape:
        raise ArithmeticError("its logits are not finite")
    exact = weights.lossless and seen.logits.dtype == torch.float32
    if exact and not agree(logits, seen.logits, WHOLE_TOLERANCE):
        raise ArithmeticError("its logits differ from the original's")
