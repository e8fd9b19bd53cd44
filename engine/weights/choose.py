"""Which weight format serves a checkpoint: the one that is asked for, or the checkpoint's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError
from ...plugins import plugins
from .base import WeightFormat
from .float import FLOAT
from .settings import AS_STORED


def choose_format(name: str, path: Path, fields: Mapping[str, Any]) -> WeightFormat:
    """The format called `name`; with `AS_STORED`, the one that recognises the checkpoint.

    A checkpoint that no format recognises is read by transformers, as floating-point numbers.

    Raises:
        ConfigurationError: a package cannot be imported, or several formats recognise it.
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
    return formats[own[0]] if own else FLOAT
