"""Which weight format serves a checkpoint (the one asked for, or its own), and which reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError
from ...plugins import plugins
from ...validation import show
from .base import WeightFormat
from .float import FLOAT
from .quantization_config import FIELD
from .settings import AS_STORED


def choose_format(name: str, path: Path, fields: Mapping[str, Any]) -> WeightFormat:
    """The format called `name`; with `AS_STORED`, the one that recognises the checkpoint.

    A checkpoint that no format recognises is read by transformers, as floating-point numbers.

    Raises:
        ConfigurationError: a package cannot be imported; or the checkpoint's own format is asked
            for, and several recognise it, or none and its weights are quantised.
    """
    formats: dict[str, WeightFormat] = {
        plugin.name: plugin.value for plugin in plugins("penstock.weight_formats")
    }
    if name != AS_STORED:
        return formats[name]
    own = [name for name, weights in formats.items() if weights.recognises(path, fields)]
    if len(own) > 1:
        raise ConfigurationError(
            f"{path}: the weight formats {', '.join(own)} all recognise this checkpoint; name one "
            "with --quantization"
        )
    if not own and fields.get(FIELD):
        served = sorted({method for weights in formats.values() for method in weights.methods})
        raise ConfigurationError(
            f"{path / 'config.json'}: {FIELD}.quant_method is {_told(fields[FIELD])}; served: "
            f"{', '.join(served)}"
        )
    return formats[own[0]] if own else FLOAT


def choose_reader(weights: WeightFormat, path: Path, fields: Mapping[str, Any]) -> WeightFormat:
    """The format that reads a checkpoint which `weights` serves.

    Raises:
        ConfigurationError: see `choose_format`.
    """
    return weights if weights.recognises(path, fields) else choose_format(AS_STORED, path, fields)


def _told(config: Any) -> str:
    return show(config.get("quant_method")) if isinstance(config, dict) else "missing"
