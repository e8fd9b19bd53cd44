"""Prepares a loaded model for serving: rewrites, quantises, packs and checks it."""

import logging
from typing import Any

import torch
from torch import nn

from ....errors import ConfigurationError
from .compiled import compiled_decoder
from .linears import Quantization, pack_linears, quantize_linears, usable_library
from .observe import WHOLE_TOLERANCE, Observation, agree, observe
from .rewrite import rewrite

logger = logging.getLogger(__name__)


def make_fused(model: Any, quantization: Quantization) -> nn.Module | None:
    """The model in its fastest form. `model` is changed and must not be used any more.

    None where that failed, which any model may cause: load it again and quantise it without
    rewriting.
    """
    if quantization == "none" and not _rewritable(model):
        return model
    try:
        seen = observe(model)
        seen.calls.clear()
        model = _faster(model, quantization)
        _check(model, seen, quantization)
    except Exception as error:
        logger.warning(
            "the model runs as transformers has it, which is slower: %s: %s",
            type(error).__name__,
            error,
            exc_info=logger.isEnabledFor(logging.DEBUG),
        )
        return None
    return model


def _faster(model: nn.Module, quantization: Quantization) -> nn.Module:
    """Rewrite what is recognised, then compile the whole decoder or only its linear layers."""
    if not _rewritable(model):
        quantize(model, quantization)
        return model
    model = rewrite(model)
    compiled = usable_library()
    whole = None if compiled is None else compiled_decoder(compiled, model, quantization)
    if whole is not None:
        return whole
    quantize(model, quantization)
    if compiled is not None:
        pack_linears(model, compiled)
    return model


def quantize(model: nn.Module, quantization: Quantization) -> None:
    """Quantise the weights of linear layers, if asked for."""
    if quantization == "int8":
        quantize_linears(model)


def check_quantized(model: Any) -> None:
    """Run a model that was quantised without rewriting.

    Raises:
        ConfigurationError: it does not run, or its logits are not finite.
    """
    try:
        _check(model, observe(model), "int8")
    except Exception as error:
        raise ConfigurationError(
            f"the model cannot be served with --quantization int8 ({type(error).__name__})"
        ) from error


def _rewritable(model: nn.Module) -> bool:
    parameter = next(model.parameters(), None)
    return (
        parameter is not None
        and parameter.device.type == "cpu"
        and parameter.dtype == torch.float32
    )


@torch.inference_mode()
def _check(model: nn.Module, seen: Observation, quantization: Quantization) -> None:
    """Compare with the logits recorded before; with 8 bits, only check that they are finite."""
    logits = model(**seen.given).logits[0]
    if not torch.isfinite(logits).all() or logits.shape != seen.logits.shape:
        raise ArithmeticError("its logits are not finite")
    exact = quantization == "none" and seen.logits.dtype == torch.float32
    if exact and not agree(logits, seen.logits, WHOLE_TOLERANCE):
        raise ArithmeticError("its logits differ from the original's")
