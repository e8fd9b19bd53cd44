"""A tiny random checkpoint of any model type that transformers knows to generate text."""

import re
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from tests.sweep.overrides import NO_TEXT, OVERRIDES
from tests.sweep.shrink import EOS, shrunk
from tests.tiny import byte_tokenizer, enlarge_weights

MOST_PARAMETERS: Final = 20_000_000


class UnbuildableError(Exception):
    """No tiny checkpoint can be made of this type; the message says why."""


def model_types() -> list[str]:
    """Every causal and image-text model type of the installed transformers."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})


def tiny_config(model_type: str) -> Any:
    """Its configuration with every size shrunk."""
    kind: Any = CONFIG_MAPPING[model_type]
    changes = OVERRIDES.get(model_type, {})
    fields = shrunk(kind(**changes.get("first", {})).to_dict())
    fields.pop("model_type", None)
    return kind(**_merged(fields, changes.get("then", {})))


def model_class(config: Any) -> Any:
    """The class of transformers that generates text with it."""
    mappings: list[Any] = [MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING]
    kinds = [mapping.get(type(config), None) for mapping in mappings]
    kinds = [kind for kind in kinds if kind is not None]
    whole = [kind for kind in kinds if kind.config_class is type(config)]
    return (whole or kinds)[0]


def make(model_type: str, folder: Path) -> None:
    """Save a random checkpoint of `model_type`, with the byte tokenizer, into `folder`.

    Raises:
        UnbuildableError: there is no model of this type, or none that is tiny.
    """
    if model_type in NO_TEXT:
        raise UnbuildableError(NO_TEXT[model_type])
    torch.manual_seed(1234)
    model: PreTrainedModel = _built(model_type)
    enlarge_weights(model)
    _enlarge_what_is_zero(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= OVERRIDES.get(model_type, {}).get("scale", 1.0)
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None  # start-up would try it at length
    tokenizer.save_pretrained(folder)


def _built(model_type: str) -> Any:
    try:
        config = tiny_config(model_type)
        kind = model_class(config)
        with torch.device("meta"):
            described = kind._from_config(config)
        count = sum(p.numel() for p in described.parameters())
        if count > MOST_PARAMETERS:
            name, largest = max(described.named_parameters(), key=lambda pair: pair[1].numel())
            raise UnbuildableError(f"{count} parameters ({name}: {list(largest.shape)})")
        return kind._from_config(tiny_config(model_type)).float().eval()
    except UnbuildableError:
        raise
    except ImportError as error:
        named = re.search(r"requires the (\S+) library", str(error))
        package = named[1] if named else error.name
        raise UnbuildableError(f"it needs the package {package}, which is not installed") from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise UnbuildableError(f"{type(error).__name__}: {lines[0][:160]}") from error


def _enlarge_what_is_zero(model: nn.Module) -> None:
    """Scalars and gains that are zero at first would switch off what they scale."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1 and not bool(parameter.any()):
                parameter.normal_(0.0, 0.05)


def _merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(fields)
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merged(merged[name], value)
        elif value is ...:
            merged.pop(name, None)
        else:
            merged[name] = value
    return merged
