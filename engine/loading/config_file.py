"""config.json, checked before transformers builds anything from it.

The configuration classes of transformers declare the types of fields and check them. This module
checks what they do not: that numbers are in bounds, so that a wrong one does not allocate huge
memory, and that they fit each other.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

from ...errors import ConfigurationError
from .folder import CONFIG, read_object
from .stages import printable

LAYERS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
HEADS: Final = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS: Final = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
WIDTHS: Final = ("hidden_size", "n_embd", "d_model", "dim")
CONTEXTS: Final = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
)

_BOUNDS: Final[dict[str, tuple[int, int]]] = {
    **dict.fromkeys(LAYERS, (1, 4096)),
    **dict.fromkeys(HEADS, (1, 65_536)),
    **dict.fromkeys(KV_HEADS, (1, 65_536)),
    **dict.fromkeys(WIDTHS, (1, 2**20)),
    **dict.fromkeys(CONTEXTS, (1, 2**31 - 1)),
    "head_dim": (1, 65_536),
    "vocab_size": (1, 2**26),
    "intermediate_size": (1, 2**24),
    "moe_intermediate_size": (1, 2**24),
    "num_experts": (0, 65_536),
    "num_local_experts": (0, 65_536),
    "n_routed_experts": (0, 65_536),
    "num_experts_per_tok": (0, 65_536),
    "sliding_window": (-1, 2**31 - 1),
    "attention_chunk_size": (1, 2**31 - 1),
    "original_max_position_embeddings": (1, 2**31 - 1),
}
_PARTS: Final = ("text_config", "llm_config", "language_config")
_ROPE: Final = ("rope_scaling", "rope_parameters")
_MOST_FACTOR: Final = 2**20
_COUNTS: Final = ("num_", "n_")
_MOST_COUNT: Final = 2**16


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of config.json.

    Raises:
        ConfigurationError: it cannot be read, or a field is wrong.
    """
    path = folder / CONFIG
    fields = read_object(path)
    kind = fields.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise ConfigurationError(
            f"{path}: model_type is {printable(repr(kind))}, and a name is expected"
        )
    for name, value in _numbers("", fields):
        # Numbers in lists are bounds, which may be infinite.
        if isinstance(value, float) and (
            math.isnan(value) or (math.isinf(value) and name[-1] != "]")
        ):
            raise ConfigurationError(f"{path}: {name} is {value}, and a finite number is expected")
    _check_part(path, "", fields)
    for name in _PARTS:
        part = fields.get(name)
        if isinstance(part, dict):
            _check_part(path, f"{name}.", cast(dict[str, Any], part))
        elif part is not None:
            raise ConfigurationError(
                f"{path}: {name} is {printable(repr(part))}, and an object is expected"
            )
    return fields


def _check_part(path: Path, prefix: str, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        # transformers makes lists and dictionaries of that size.
        if type(value) is int and name.startswith(_COUNTS) and value > _MOST_COUNT:
            raise ConfigurationError(
                f"{path}: {prefix}{name} is {value}, and at most {_MOST_COUNT} is expected"
            )
    for name, (least, most) in _BOUNDS.items():
        if name == "head_dim" and fields.get("kv_lora_rank") is not None:
            least = 0  # of the rotary part of a latent head, which it may lack
        _check_bounds(path, prefix + name, fields.get(name), least, most)
    _check_theta(path, prefix, fields)
    for name in _ROPE:
        rope = fields.get(name)
        if isinstance(rope, dict):
            _check_rope(path, f"{prefix}{name}.", cast(dict[str, Any], rope))
    _check_heads(path, prefix, fields)


def _check_bounds(path: Path, name: str, value: Any, least: int, most: int) -> None:
    """Check an integer, or a list of them: one for each layer."""
    if value is None:
        return
    for each in cast(list[Any], value) if isinstance(value, list) else [value]:
        if type(each) is not int or not least <= each <= most:
            raise ConfigurationError(
                f"{path}: {name} is {printable(repr(each))}, and an integer from {least} to "
                f"{most} is expected"
            )


def _check_rope(path: Path, prefix: str, rope: dict[str, Any]) -> None:
    """Check rotary parameters, of all layers or by kind of layer."""
    for name, value in rope.items():
        if isinstance(value, dict):
            _check_rope(path, f"{prefix}{name}.", cast(dict[str, Any], value))
    _check_theta(path, prefix, rope)
    factor = rope.get("factor")
    if factor is not None and not (
        type(factor) in (int, float) and math.isfinite(factor) and 1 <= factor <= _MOST_FACTOR
    ):
        raise ConfigurationError(
            f"{path}: {prefix}factor is {printable(repr(factor))}, and a number from 1 to "
            f"{_MOST_FACTOR} is expected"
        )
    name = "original_max_position_embeddings"
    _check_bounds(path, prefix + name, rope.get(name), *_BOUNDS[name])
    for name in ("short_factor", "long_factor"):
        factors = rope.get(name)
        if factors is not None and not (
            isinstance(factors, list)
            and factors
            and all(
                type(each) in (int, float) and math.isfinite(each) and each > 0
                for each in cast(list[Any], factors)
            )
        ):
            raise ConfigurationError(f"{path}: {prefix}{name} is not a list of positive numbers")


def _check_theta(path: Path, prefix: str, fields: dict[str, Any]) -> None:
    theta = fields.get("rope_theta")
    if theta is not None and not (type(theta) in (int, float) and 1 < theta < math.inf):
        raise ConfigurationError(
            f"{path}: {prefix}rope_theta is {printable(repr(theta))}, and a number above 1 is "
            "expected"
        )


def _check_heads(path: Path, prefix: str, fields: dict[str, Any]) -> None:
    """Check only the usual fields: some architectures define heads in other ways."""
    heads, kv_heads, width = (_first(fields, names) for names in (HEADS, KV_HEADS, WIDTHS))
    latent = fields.get("kv_lora_rank") is not None
    if heads and kv_heads and not latent and heads[1] % kv_heads[1]:
        raise ConfigurationError(
            f"{path}: {prefix}{heads[0]} is {heads[1]}, which {kv_heads[0]} ({kv_heads[1]}) does "
            "not divide"
        )
    own_sizes = ("head_dim", "qk_rope_head_dim", "kv_channels", "attention_head_dim", "d_kv")
    if heads and width and not any(fields.get(name) for name in own_sizes) and width[1] % heads[1]:
        raise ConfigurationError(
            f"{path}: {prefix}{width[0]} is {width[1]}, which {heads[0]} ({heads[1]}) does not "
            "divide"
        )


def _first(fields: dict[str, Any], names: tuple[str, ...]) -> tuple[str, int] | None:
    return next(((name, fields[name]) for name in names if type(fields.get(name)) is int), None)


def _numbers(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in cast(dict[str, Any], value).items():
            yield from _numbers(f"{prefix}.{name}" if prefix else name, inner)
    elif isinstance(value, list):
        for i, inner in enumerate(cast(list[Any], value)):
            yield from _numbers(f"{prefix}[{i}]", inner)
    else:
        yield prefix, value
