"""Checks for NaN and infinity: in weights, and in values too large for the dtype."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ...errors import ConfigurationError
from ..attention.interface import Probe
from .safetensors_files import StoredTensor
from .weights import stored_as

logger = logging.getLogger(__name__)

_TRIED: Final = 64
_HALF: Final = (torch.float16, torch.bfloat16)


def check_weights(
    folder: Path,
    model: nn.Module,
    stored: Mapping[str, StoredTensor],
    read: Callable[[str, StoredTensor], Tensor],
) -> None:
    """Find weights that are not finite, or not stored as floating-point numbers.

    `read`: the numbers of one of `stored`.

    A weight that is finite in the file but too large for the dtype is only a warning: it may belong
    to an unused token, and its effects are found when it is used.

    Raises:
        ConfigurationError: a stored tensor holds NaN, infinity or integers.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        source = stored_as(name, stored)
        if source is not None and not stored[source].is_floating:
            tensor = stored[source]
            raise ConfigurationError(
                f"{tensor.file}: {source} holds {tensor.dtype}, and floating-point numbers are "
                "expected"
            )
        if bool(torch.isfinite(parameter).all()):
            continue
        if source is not None and _is_finite(read(source, stored[source])):
            logger.warning(
                "%s holds values too large for %s, which become infinite; use %s",
                name,
                _dtype(parameter),
                _remedy(parameter.dtype),
            )
            continue
        kind = "NaN" if bool(parameter.isnan().any()) else "infinity"
        where = f"{folder}: {name}" if source is None else f"{stored[source].file}: {source}"
        raise ConfigurationError(f"{where} holds {kind}: the weights are damaged")


def computable_tokens(model: nn.Module, vocab_size: int) -> list[int]:
    """Tokens, spread over the vocabulary, with finite logits; further checks use these.

    Raises:
        ConfigurationError: there are too few; the message says what overflows and what helps.
    """
    ids = sorted(
        {5 + (vocab_size - 6) * i // _TRIED for i in range(_TRIED)} & set(range(vocab_size))
    )
    logits, culprit = _logits_alone(model, ids)
    finite = torch.isfinite(logits).all(dim=-1).tolist()
    fine = [token for token, good in zip(ids, finite, strict=True) if good]
    if len(fine) == len(ids):
        return fine
    parameter = next(model.parameters())
    where = f", first in the output of {culprit}" if culprit else ""
    told = (
        f"values overflow {_dtype(parameter)} for {len(ids) - len(fine)} of {len(ids)} tokens tried"
        f"{where}; use {_remedy(parameter.dtype)}"
    )
    if len(fine) < min(4, len(ids)):
        raise ConfigurationError(f"the model's logits are not finite: {told}")
    logger.warning("logits are not finite: %s", told)
    return fine


def overflow(model: nn.Module) -> ConfigurationError:
    """The error for a model whose logits are finite for single tokens but not for a prompt."""
    parameter = next(model.parameters())
    return ConfigurationError(
        f"the model's logits are not finite: values overflow {_dtype(parameter)} in a prompt; use "
        f"{_remedy(parameter.dtype)}"
    )


def _logits_alone(model: Any, ids: Sequence[int]) -> tuple[Tensor, str | None]:
    """Logits of tokens that do not see each other, and the first module with non-finite output."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(_module: nn.Module, _given: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if found or not isinstance(first, Tensor) or not first.is_floating_point():
                return
            if not bool(torch.isfinite(first).all()):
                found.append(name)

        return look

    leaves = [(n, m) for n, m in model.named_modules() if n and not any(m.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            logits = model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.arange(len(ids), device=device)[None],
                use_cache=False,
                penstock_step=Probe(),
            ).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return logits, found[0] if found else None


def _is_finite(values: Tensor) -> bool:
    return values.is_floating_point() and bool(torch.isfinite(values.float()).all())


def _dtype(parameter: Tensor) -> str:
    return str(parameter.dtype).removeprefix("torch.")


def _remedy(dtype: torch.dtype) -> str:
    if dtype == torch.float16:
        return "--dtype bfloat16 or float32"
    return "--dtype float32" if dtype in _HALF else "other weights: float32 is the largest dtype"
