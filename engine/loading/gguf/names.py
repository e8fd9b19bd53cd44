"""Which tensors of a GGUF file become which parameter of the model, and how.

llama.cpp stores the rows of queries and keys of some architectures pair by pair, as its rotation
takes them; adds 1 to norms of others; and keeps the gates of all experts apart from their ups.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from ....errors import ConfigurationError
from ..stages import printable
from .architectures import Architecture
from .parts import GgufModel
from .rope import ROPE_TENSORS

_BLOCK: Final = re.compile(r"blk\.(0|[1-9]\d{0,5})\.([a-z0-9_]+)\.(weight|bias)")
_OUTSIDE: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_STACKED: Final = "mlp.experts."
_GATE: Final = "ffn_gate_exps"
_UP: Final = "ffn_up_exps"


class Change(Enum):
    """What is undone on the way to the model's parameter."""

    NONE = "none"
    QUERIES = "rows of queries, pair by pair"
    KEYS = "rows of keys, pair by pair"
    SHIFT = "1 was added"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a parameter comes from: one tensor, or those of gates and ups, one behind the other."""

    tensors: tuple[str, ...]
    change: Change


def sources(model: GgufModel, architecture: Architecture) -> dict[str, Source]:
    """Parameter name -> the tensors it is made of; tensors about rotation are no parameters.

    Raises:
        ConfigurationError: a tensor is none of the architecture's, or two are the same parameter's.
    """
    found: dict[str, list[str]] = {}
    for name in model.tensors:
        if name not in ROPE_TENSORS:
            found.setdefault(_parameter(model, architecture, name), []).append(name)
    return {
        parameter: Source(
            tensors=_ordered(model, parameter, names),
            change=_change(architecture, names[0]),
        )
        for parameter, names in found.items()
    }


def shape(model: GgufModel, source: Source) -> tuple[int, ...]:
    """The shape of a parameter; of several tensors the rows of each expert add up.

    Raises:
        ConfigurationError: their shapes do not fit each other.
    """
    shapes = [model.tensors[name][1].shape for name in source.tensors]
    if len(shapes) == 1:
        return shapes[0]
    first = shapes[0]
    if len(first) != 3 or any(each != first for each in shapes):
        named = ", ".join(printable(name) for name in source.tensors)
        raise ConfigurationError(f"{model.file}: {named} do not have one shape of three dimensions")
    return (first[0], len(shapes) * first[1], first[2])


def _parameter(model: GgufModel, architecture: Architecture, name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    block = _BLOCK.fullmatch(name)
    layer = None if block is None else architecture.layers.get(block[2])
    if block is None or layer is None:
        file = model.tensors[name][0].file
        raise ConfigurationError(
            f"{file}: the model has no place for {printable(name)} "
            f"(general.architecture is that of {architecture.model_type})"
        )
    suffix = "" if layer.startswith(_STACKED) else f".{block[3]}"
    return f"model.layers.{block[1]}.{layer}{suffix}"


def _ordered(model: GgufModel, parameter: str, names: list[str]) -> tuple[str, ...]:
    """The gates of experts stand before their ups."""
    if len(names) == 1 and not any(f".{part}." in names[0] for part in (_GATE, _UP)):
        return tuple(names)
    gate = [name for name in names if f".{_GATE}." in name]
    up = [name for name in names if f".{_UP}." in name]
    if len(gate) != 1 or len(up) != 1 or len(names) != 2:
        raise ConfigurationError(
            f"{model.file}: {printable(parameter)} cannot be made of "
            f"{printable(', '.join(sorted(names)))}"
        )
    return (gate[0], up[0])


def _change(architecture: Architecture, name: str) -> Change:
    if architecture.interleaved and ".attn_q." in name:
        return Change.QUERIES
    if architecture.interleaved and ".attn_k." in name:
        return Change.KEYS
    if architecture.shifted_norms and name.endswith("norm.weight"):
        return Change.SHIFT
    return Change.NONE
