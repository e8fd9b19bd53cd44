"""Builds a model and loads its weights: stored tensors and parameters must match exactly."""

import logging
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from ...errors import ConfigurationError, UnsupportedModelError
from ..attention.interface import NAME
from .config_file import LAYERS
from .folder import CONFIG
from .safetensors_files import StoredTensor
from .settings import ModelSettings
from .stages import printable, stage
from .text_part import attention_of, left_out, text_part, without_memory

logger = logging.getLogger(__name__)

_SHOWN: Final = 3
_SLACK: Final = 1 << 20
"""Parameters that a config may describe beyond twice those stored before it is refused."""


def unsupported(kind: str, reason: str) -> UnsupportedModelError:
    """The error for an architecture that cannot be served."""
    return UnsupportedModelError(
        f"the architecture {kind!r} is not supported: {reason}. Penstock runs decoders that "
        "compute all attention through transformers' attention interface"
    )


def build_config(folder: Path, settings: ModelSettings) -> Any:
    """transformers' configuration object.

    Raises:
        ConfigurationError: transformers does not know the architecture, or refuses a field.
    """
    with stage(f"{folder / CONFIG}"):
        found = AutoConfig.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
        if not isinstance(found.get_text_config(), PreTrainedConfig):
            raise ValueError(f"{found.model_type!r} has no parts, and one is given")
    return found


def check_sizes(
    folder: Path, model_config: Any, stored: Mapping[str, StoredTensor], settings: ModelSettings
) -> re.Pattern[str]:
    """Build the model on the meta device and compare its size with the stored tensors.

    Returns what matches the names of tensors that it does without (see `text_part`).

    Raises:
        ConfigurationError: no model can be built, or the weights do not have its size.
        UnsupportedModelError: its attention bypasses the interface.
    """
    path = folder / CONFIG
    text_config = model_config.get_text_config()
    layers = getattr(text_config, "num_hidden_layers", None)
    if type(layers) is int and layers > len(stored):
        raise ConfigurationError(
            f"{path}: {_spelled(model_config)} is {layers}, and the weights have {len(stored)} "
            "tensors"
        )
    try:
        with stage(f"{path}: no model can be built from it"):
            model = without_memory(model_config, settings)
    except ConfigurationError as error:
        _refuse_bypassing(text_config.model_type, error.__cause__)
        raise
    if getattr(model.config, "is_encoder_decoder", False):
        raise unsupported(text_config.model_type, "an encoder reads its prompts")
    unneeded = left_out(model)
    if getattr(model_config, "quantization_config", None) is not None:
        return unneeded  # transformers reads them, and knows how large they become
    described = sum(p.numel() for p in model.parameters())
    held = sum(tensor.numel for name, tensor in stored.items() if not unneeded.search(name))
    if described > 2 * held + _SLACK:
        raise ConfigurationError(
            f"{path}: it describes {described} parameters, and the weights hold {held}"
            + _largest_difference(model, stored)
        )
    return unneeded


def load_weights(
    folder: Path,
    model_config: Any,
    stored: Mapping[str, StoredTensor],
    settings: ModelSettings,
    dtype: torch.dtype,
    tensors: Mapping[str, Tensor] | None = None,
) -> Any:
    """The model with its weights. `tensors`: in place of those that transformers would read.

    Raises:
        ConfigurationError: tensors are missing, unused or of another shape.
    """
    with _listening() as said:
        try:
            with stage(f"{folder}: the weights cannot be loaded"):
                model, report = _from_pretrained(folder, model_config, settings, dtype, tensors)
        except ConfigurationError as error:
            if reason := _conversion(said):
                raise ConfigurationError(f"{folder}: the weights do not fit: {reason}") from error
            raise
    _check_report(folder, model, report, stored)
    _tell_untied(model)
    return model


def _from_pretrained(
    folder: Path,
    model_config: Any,
    settings: ModelSettings,
    dtype: torch.dtype,
    tensors: Mapping[str, Tensor] | None,
) -> Any:
    """The model, and transformers' report on its weights."""
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": attention_of(model_config),
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }
    kind = text_part(model_config, settings)
    if tensors is None and kind is not None:
        return kind.from_pretrained(folder, config=model_config, use_safetensors=True, **options)
    if tensors is None:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            config=model_config,
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
            **options,
        )
    kind = kind or type(without_memory(model_config, settings))
    return kind.from_pretrained(
        None, config=deepcopy(model_config), state_dict=dict(tensors), **options
    )


def _tell_untied(model: Any) -> None:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if tied and head is not None and head.weight is not embedding.weight:
        logger.warning(
            "%s ties the output head to the embedding, but the weights hold both and they differ: "
            "each is used as it is stored",
            CONFIG,
        )


def _check_report(
    folder: Path, model: Any, report: Mapping[str, Any], stored: Mapping[str, StoredTensor]
) -> None:
    """Refuse weights where transformers would initialise parameters at random or skip tensors."""
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, found, expected = mismatched[0]
        raise ConfigurationError(
            f"{_file_of(folder, name, stored)}: {name} has the shape {list(found)}, and "
            f"{CONFIG} makes it {list(expected)}{_others(len(mismatched))}"
        )
    missing, unused = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    hint = _layers_hint(model, missing, unused)
    if missing:
        raise ConfigurationError(
            f"{folder}: the weights lack {_listed(missing)}"
            + (f", and hold {_listed(unused)}, which the model has no place for" if unused else "")
            + hint
        )
    if unused:
        raise ConfigurationError(
            f"{_file_of(folder, unused[0], stored)}: the model has no place for {_listed(unused)}"
            + hint
        )


def _layers_hint(model: Any, missing: list[str], unused: list[str]) -> str:
    """A hint at the config's number of layers, where whole layers are missing or unused."""
    if any(".0." in name or ".1." in name for name in (*missing, *unused)):
        return ""
    if not any(".layers." in f".{name}" or ".h." in f".{name}" for name in (*missing, *unused)):
        return ""
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    return f" ({CONFIG}: {_spelled(model.config)} is {layers})"


def _spelled(model_config: Any) -> str:
    """The field in which this architecture stores its number of layers."""
    own = type(model_config.get_text_config()).attribute_map.get("num_hidden_layers")
    return own if own in LAYERS else "num_hidden_layers"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(printable(name) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _others(count: int) -> str:
    return f"; so it is with {count - 1} more" if count > 1 else ""


def stored_as(name: str, stored: Mapping[str, StoredTensor]) -> str | None:
    """The stored name of a parameter, the same up to a prefix; None: there is not just one."""
    if name in stored:
        return name
    near = [each for each in stored if each.endswith(f".{name}") or name.endswith(f".{each}")]
    return near[0] if len(near) == 1 else None


def _file_of(folder: Path, name: str, stored: Mapping[str, StoredTensor]) -> Path:
    found = stored_as(name, stored)
    return folder if found is None else stored[found].file


def _largest_difference(model: Any, stored: Mapping[str, StoredTensor]) -> str:
    for name, parameter in sorted(model.named_parameters(), key=lambda pair: -pair[1].numel()):
        found = stored_as(name, stored)
        if found is not None and stored[found].shape != tuple(parameter.shape):
            return f" ({name}: {list(parameter.shape)}, stored as {list(stored[found].shape)})"
    return ""


def _refuse_bypassing(kind: str, error: BaseException | None) -> None:
    bypasses = isinstance(error, KeyError) and error.args == (NAME,)
    if bypasses or "attn_implementation" in str(error):
        raise unsupported(kind, "it has attention classes of its own") from error


@contextmanager
def _listening() -> Generator[list[str]]:
    """Collect what transformers logs about the weights; passed on only at level debug."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    log, listener = logging.getLogger("transformers.modeling_utils"), Listener()
    level, propagate = log.level, log.propagate
    log.addHandler(listener)
    log.setLevel(logging.WARNING)
    log.propagate = False
    try:
        yield said
    finally:
        log.removeHandler(listener)
        log.setLevel(level)
        log.propagate = propagate
        for each in said:
            logger.debug("transformers: %s", each)


def _conversion(said: Iterable[str]) -> str | None:
    """The report's line about a tensor that could not be assembled from several, if any."""
    lines = [line for each in said for line in each.splitlines() if "CONVERSION" in line]
    cells = [cell.strip() for cell in lines[0].split("|")] if lines else []
    return printable(" ".join(cell for cell in cells if cell)) or None
