"""Rotary angles of a GGUF file, in its metadata and in up to three tensors of divisors.

`rope_freqs.weight` `[head_size / 2]` divides the frequencies one by one (Llama 3.1 and later);
`rope_factors_short.weight` and `rope_factors_long.weight` do so below and above the original
context (LongRoPE). transformers' `longrope` takes such lists as they are, so both become that.
"""

from typing import Any, Final

import torch

from ....errors import ConfigurationError
from .header import decimal
from .metadata import Metadata, told
from .parts import GgufModel

FREQUENCIES: Final = "rope_freqs.weight"
SHORT: Final = "rope_factors_short.weight"
LONG: Final = "rope_factors_long.weight"
ROPE_TENSORS: Final = (FREQUENCIES, SHORT, LONG)

_TYPE: Final = "rope.scaling.type"
_ORIGINAL: Final = "rope.scaling.original_context_length"
_MOST_CONTEXT: Final = 2**31 - 1
_PARTIAL: Final = ("phi3",)
"""Architectures that may rotate only the first of each head's dimensions."""


def rope_parameters(model: GgufModel, metadata: Metadata, fields: dict[str, Any]) -> dict[str, Any]:
    """transformers' rotary parameters. `fields`: those of config.json so far.

    Raises:
        ConfigurationError: a kind of scaling is not served, or a tensor does not fit.
    """
    head, context = fields["head_dim"], fields["max_position_embeddings"]
    rotated = metadata.integer_or("rope.dimension_count", 1, head, head)
    found: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": metadata.number("rope.freq_base", 10_000.0),
    }
    if rotated != head:
        if metadata.architecture not in _PARTIAL:
            raise metadata.wrong(
                "rope.dimension_count", f"is {rotated}, and heads of {head} are rotated as a whole"
            )
        found["partial_rotary_factor"] = rotated / head
    metadata.refuse("rope.scaling.yarn_log_multiplier")
    kind = metadata.text_or(_TYPE, "none")
    scaling = {"none": _unscaled, "linear": _linear, "yarn": _yarn, "longrope": _longrope}
    if kind not in scaling:
        raise metadata.wrong(_TYPE, f"is {told(kind)}, and one of {', '.join(scaling)} is expected")
    scaled = scaling[kind](model, metadata, rotated, context)
    if scaled.get("rope_type") != "longrope":
        factor = metadata.number("rope.scaling.attn_factor", 1.0)
        if factor not in (0, 1):
            raise metadata.wrong("rope.scaling.attn_factor", f"is {factor}, which is not served")
    divided = [name for name in ROPE_TENSORS if name in model.tensors]
    if divided and scaled and (scaled["rope_type"] != "longrope" or FREQUENCIES in divided):
        raise ConfigurationError(
            f"{model.file}: {divided[0]} and {scaled['rope_type']} both scale the angles, and only "
            "one is served"
        )
    if FREQUENCIES in divided:
        divisors = _divisors(model, FREQUENCIES, rotated)
        scaled = {} if set(divisors) == {1.0} else _listed(divisors, divisors, context, 1.0)
    return {**found, **scaled}


def _unscaled(model: GgufModel, metadata: Metadata, rotated: int, context: int) -> dict[str, Any]:
    if SHORT in model.tensors or LONG in model.tensors:
        return _longrope(model, metadata, rotated, context)
    factor = metadata.number("rope.scale_linear", 1.0)
    return {} if factor in (0, 1) else {"rope_type": "linear", "factor": factor}


def _linear(model: GgufModel, metadata: Metadata, rotated: int, context: int) -> dict[str, Any]:
    factor = metadata.number("rope.scaling.factor")
    return {} if factor in (0, 1) else {"rope_type": "linear", "factor": factor}


def _yarn(model: GgufModel, metadata: Metadata, rotated: int, context: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": metadata.number("rope.scaling.factor"),
        "original_max_position_embeddings": metadata.integer_or(
            _ORIGINAL, 1, _MOST_CONTEXT, context
        ),
    }
    if metadata.number("rope.scaling.yarn_ext_factor", 1.0) != 1:
        raise metadata.wrong("rope.scaling.yarn_ext_factor", "is not 1, which is not served")
    more = {
        "attention_factor": "rope.scaling.yarn_attn_factor",
        "beta_fast": "rope.scaling.yarn_beta_fast",
        "beta_slow": "rope.scaling.yarn_beta_slow",
    }
    for name, key in more.items():
        value = metadata.number_or(key, None)
        if value is not None:
            found[name] = value
    return found


def _longrope(model: GgufModel, metadata: Metadata, rotated: int, context: int) -> dict[str, Any]:
    short, long = (_divisors(model, name, rotated) for name in (SHORT, LONG))
    original = metadata.integer_or(_ORIGINAL, 1, _MOST_CONTEXT, context)
    return _listed(short, long, original, metadata.number_or("rope.scaling.attn_factor", None))


def _listed(
    short: list[float], long: list[float], original: int, attention: float | None
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": original,
    }
    return found if attention is None else {**found, "attention_factor": attention}


def _divisors(model: GgufModel, name: str, rotated: int) -> list[float]:
    if name not in model.tensors:
        raise ConfigurationError(f"{model.file}: it has no tensor {name}")
    header, entry = model.tensors[name]
    if entry.kind != "F32" or entry.shape != (rotated // 2,):
        raise ConfigurationError(
            f"{header.file}: {name} is {entry.kind} {list(entry.shape)}, and F32 [{rotated // 2}] "
            "is expected"
        )
    values = torch.frombuffer(
        header.memory, dtype=torch.float32, count=rotated // 2, offset=entry.start
    )
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        raise ConfigurationError(f"{header.file}: {name} holds numbers that are not positive")
    return [decimal(value) for value in values.tolist()]
