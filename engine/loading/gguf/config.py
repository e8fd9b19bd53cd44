"""The metadata of a GGUF file as fields of config.json and generation_config.json.

Written for the architectures of `architectures.py`. What changes the model's numbers and cannot be
expressed in its config is refused by its key.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

from ....errors import ConfigurationError
from ..generation_file import SAMPLING
from .metadata import Metadata, told
from .parts import GgufModel
from .rope import rope_parameters

logger = logging.getLogger(__name__)

Fields = dict[str, Any]
More = Callable[[Metadata, GgufModel, Fields], Fields]
"""Fields of one architecture beyond the common ones, which it is given."""

MOST_TOKENS: Final = 1 << 22
_MOST_LAYERS: Final = 4096
_MOST_HEADS: Final = 1 << 16
_MOST_WIDTH: Final = 1 << 20
_MOST_INNER: Final = 1 << 24
_MOST_CONTEXT: Final = 2**31 - 1
_MOST_EXPERTS: Final = 1 << 16

_SAMPLING: Final = ("temp", "top_k", "top_p", "min_p", "penalty_repeat")
_ENDS: Final = ("eos_token_id", "eot_token_id", "eom_token_id")

_SCALES: Final = ("attention.scale", "embedding_scale", "residual_scale", "logit_scale")
_SOFTCAPS: Final = ("attn_logit_softcapping", "final_logit_softcapping")
_REFUSED: Final = (
    "attention.clamp_kqv", "attention.max_alibi_bias", "attention.temperature_scale",
    "attention.output_scale", "attention.value_scale", "attention.shared_kv_layers",
    "router_logit_softcapping", "nextn_predict_layers", "expert_shared_count", "expert_group_count",
    "leading_dense_block_count", "swin_norm", "num_loops", "rope.dimension_sections",
    "n_deepstack_layers",
)  # fmt: skip
_READ: Final = frozenset((
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.layer_norm_rms_epsilon", "attention.causal",
    "expert_count", "expert_used_count", "expert_feed_forward_length", "expert_weights_norm",
    "expert_weights_scale", "expert_gating_func", "rope.dimension_count", "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor",
    "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "rope.scaling.yarn_log_multiplier", "tensor_data_layout",
    *_SCALES, *_SOFTCAPS, *_REFUSED,
))  # fmt: skip
_READ_BY: Final = {
    "attention.sliding_window": ("gemma2", "gemma3", "phi3", "olmo2"),
    "attention.sliding_window_pattern": ("gemma2", "gemma3"),
    "rope.freq_base_swa": ("gemma3",),
}
_SOFTMAX: Final = 1


def config_fields(model: GgufModel, metadata: Metadata, model_type: str, more: More) -> Fields:
    """The fields of config.json.

    Raises:
        ConfigurationError: a key is missing, out of bounds, or asks for what is not served.
    """
    _check_keys(metadata)
    heads = metadata.integer("attention.head_count", 1, _MOST_HEADS)
    kv_heads = metadata.integer_or("attention.head_count_kv", 1, _MOST_HEADS, heads)
    if heads % kv_heads:
        raise metadata.wrong(
            "attention.head_count", f"is {heads}, which head_count_kv ({kv_heads}) does not divide"
        )
    fields: Fields = {
        "model_type": model_type,
        "vocab_size": rows(model, "token_embd.weight"),
        "hidden_size": metadata.integer("embedding_length", 1, _MOST_WIDTH),
        "intermediate_size": metadata.integer("feed_forward_length", 1, _MOST_INNER),
        "num_hidden_layers": metadata.integer("block_count", 1, _MOST_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": metadata.integer("context_length", 1, _MOST_CONTEXT),
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "attention_bias": "blk.0.attn_q.bias" in model.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in model.tensors,
        "dtype": "float32",
        **_special_tokens(metadata),
    }
    fields["head_dim"] = _head_size(metadata, fields)
    fields["rope_parameters"] = rope_parameters(model, metadata, fields)
    return {**fields, **more(metadata, model, fields)}


def generation_fields(metadata: Metadata) -> Fields:
    """The fields of generation_config.json: what ends an answer, and sampling defaults."""
    tokens = token_count(metadata)
    ends = [metadata.token_or_none(name, tokens) for name in _ENDS]
    fields: Fields = {
        **_special_tokens(metadata),
        "eos_token_id": sorted({end for end in ends if end is not None}) or None,
    }
    for name, key in zip(SAMPLING, _SAMPLING, strict=True):
        value = metadata.number_or(f"general.sampling.{key}", None)
        if value is not None:
            fields[name] = int(value) if name == "top_k" else value
    if any(name in fields for name in SAMPLING):
        fields["do_sample"] = True
    return {name: value for name, value in fields.items() if value is not None}


def token_count(metadata: Metadata) -> int:
    """How many tokens the vocabulary has.

    Raises:
        ConfigurationError: there is no vocabulary, or it is too large.
    """
    tokens = metadata.list_or_none("tokenizer.ggml.tokens", str, "strings")
    if not tokens:
        raise metadata.wrong("tokenizer.ggml.tokens", "is missing: the file has no tokenizer")
    if len(tokens) > MOST_TOKENS:
        raise metadata.wrong(
            "tokenizer.ggml.tokens", f"has {len(tokens)} tokens, and at most {MOST_TOKENS} are read"
        )
    return len(tokens)


def rows(model: GgufModel, name: str) -> int:
    """The rows of a tensor that has to be there.

    Raises:
        ConfigurationError: there is none.
    """
    if name not in model.tensors:
        raise ConfigurationError(f"{model.file}: it has no tensor {name}")
    return model.tensors[name][1].shape[0]


def _special_tokens(metadata: Metadata) -> Fields:
    tokens = token_count(metadata)
    return {
        "bos_token_id": metadata.token_or_none("bos_token_id", tokens),
        "eos_token_id": metadata.token_or_none("eos_token_id", tokens),
        "pad_token_id": metadata.token_or_none("padding_token_id", tokens),
    }


def _head_size(metadata: Metadata, fields: Fields) -> int:
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    if metadata.find("attention.key_length") is None and width % heads:
        raise metadata.wrong(
            "embedding_length", f"is {width}, which attention.head_count ({heads}) does not divide"
        )
    size = metadata.integer_or("attention.key_length", 1, _MOST_HEADS, width // heads)
    values = metadata.integer_or("attention.value_length", 1, _MOST_HEADS, size)
    if size != values:
        raise metadata.wrong(
            "attention.value_length", f"is {values}, and key_length is {size}: both have to be one"
        )
    return size


def _check_keys(metadata: Metadata) -> None:
    metadata.refuse(*_REFUSED)
    if not metadata.flag_or("attention.causal", True):
        raise metadata.wrong("attention.causal", "is False, and only causal attention is served")
    gating = metadata.integer_or("expert_gating_func", 0, 255, _SOFTMAX)
    if gating not in (0, _SOFTMAX):
        raise metadata.wrong("expert_gating_func", f"is {gating}, and only softmax (1) is served")
    prefix = f"{metadata.architecture}."
    own = [key.removeprefix(prefix) for key in metadata.values if key.startswith(prefix)]
    scale = metadata.number("expert_weights_scale", 1.0)
    if scale not in (0, 1):
        raise metadata.wrong("expert_weights_scale", f"is {scale}, which is not served")
    known = {name for name, readers in _READ_BY.items() if metadata.architecture in readers}
    if unknown := [name for name in own if name not in _READ | known]:
        logger.warning(
            "%s: ignored metadata, which may matter: %s", metadata.file, told(sorted(unknown))
        )


def _plain(metadata: Metadata, *scales: str) -> None:
    """Refuse factors that this architecture does not have, but for those of `scales`."""
    metadata.refuse(*(name for name in (*_SCALES, *_SOFTCAPS) if name not in scales))


def plain(metadata: Metadata, model: GgufModel, fields: Fields) -> Fields:
    """Nothing more."""
    _plain(metadata)
    return {}


def qwen(metadata: Metadata, model: GgufModel, fields: Fields) -> Fields:
    """Qwen 2 and 3, whose windows no file has."""
    _plain(metadata)
    return {"use_sliding_window": False}


def mixture(metadata: Metadata, model: GgufModel, fields: Fields) -> Fields:
    """Mixtral, which is a `llama` with experts; without experts it is one."""
    _plain(metadata)
    if not metadata.integer_or("expert_count", 0, _MOST_EXPERTS, 0):
        return {}
    return {"model_type": "mixtral", "num_local_experts": _experts(metadata), **_used(metadata)}


def qwen3_moe(metadata: Metadata, model: GgufModel, fields: Fields) -> Fields:
    """Qwen 3 with experts in every layer."""
    return {
        **qwen(metadata, model, fields),
        "num_experts": _experts(metadata),
        **_used(metadata),
        "moe_intermediate_size": metadata.integer("expert_feed_forward_length", 1, _MOST_INNER),
        "norm_topk_prob": metadata.flag_or("expert_weights_norm", True),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _experts(metadata: Metadata) -> int:
    return metadata.integer("expert_count", 1, _MOST_EXPERTS)


def _used(metadata: Metadata) -> Fields:
    return {"num_experts_per_tok": metadata.integer("expert_used_count", 1, _experts(metadata))}


def gemma2(metadata: Metadata, model: GgufModel, fields: Fields) -> Fields:
    """Gemma 2: every other layer has a window, and logits have soft caps."""
    _plain(metadata, *_SOFTCAPS)
    return {
        "query_pre_attn_scalar": _query_scale(fields, layers_of_largest=46),
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", 30.0),
        **_windows(metadata, fields, default=4096, period=2),
    }


def gemma3(metadata: Metadata, model: GgufModel, fields: Fields) -> Fields:
    """Gemma 3: five of six layers have a window and angles of their own."""
    _plain(metadata, "final_logit_softcapping")
    theta = metadata.number("rope.freq_base_swa", 10_000.0)
    return {
        "query_pre_attn_scalar": _query_scale(fields, layers_of_largest=62),
        "final_logit_softcapping": metadata.number_or("final_logit_softcapping", None) or None,
        "rope_parameters": {
            "full_attention": fields["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": theta},
        },
        **_windows(metadata, fields, default=0, period=6),
    }


def _query_scale(fields: Fields, *, layers_of_largest: int) -> int:
    """What queries are divided by the root of; only the largest model has its own, and no file."""
    if fields["num_hidden_layers"] == layers_of_largest:
        return fields["hidden_size"] // fields["num_attention_heads"]
    return fields["head_dim"]


def _windows(metadata: Metadata, fields: Fields, *, default: int, period: int) -> Fields:
    """Which layers have a window; the last of every `period` has none."""
    layers = fields["num_hidden_layers"]
    window = metadata.integer_or("attention.sliding_window", 0, _MOST_CONTEXT, default)
    key = "attention.sliding_window_pattern"
    told_of = metadata.find(key)
    if isinstance(told_of, list):
        flags = metadata.list_or_none(key, (bool, int), "truth values") or []
        if len(flags) != layers:
            raise metadata.wrong(key, f"has {len(flags)} values, and there are {layers} layers")
    else:
        period = metadata.integer_or(key, 0, _MOST_LAYERS, period)
        flags = [bool(period) and (i + 1) % period != 0 for i in range(layers)]
    kinds = ["sliding_attention" if window and flag else "full_attention" for flag in flags]
    return {"sliding_window": window or None, "layer_types": kinds}


def phi3(metadata: Metadata, model: GgufModel, fields: Fields) -> Fields:
    """Phi 3 and 4: one window in all layers, or none."""
    _plain(metadata)
    context = fields["max_position_embeddings"]
    key = "rope.scaling.original_context_length"
    return {
        "sliding_window": metadata.integer_or("attention.sliding_window", 0, _MOST_CONTEXT, 0)
        or None,
        "original_max_position_embeddings": metadata.integer_or(key, 1, _MOST_CONTEXT, context),
    }


def granite(metadata: Metadata, model: GgufModel, fields: Fields) -> Fields:
    """Granite: a llama with factors."""
    _plain(metadata, *_SCALES)
    if fields["head_dim"] * fields["num_attention_heads"] != fields["hidden_size"]:
        raise metadata.wrong("attention.key_length", "is not that of the model's width and heads")
    if not metadata.flag_or("rope.scaling.finetuned", True):
        raise metadata.wrong("rope.scaling.finetuned", "is False: it has no positions")
    usual = fields["head_dim"] ** -0.5
    return {
        "attention_multiplier": metadata.number_or("attention.scale", None) or usual,
        "embedding_multiplier": metadata.number("embedding_scale", 1.0) or 1.0,
        "residual_multiplier": metadata.number("residual_scale", 1.0) or 1.0,
        "logits_scaling": metadata.number("logit_scale", 1.0) or 1.0,
    }


def olmo2(metadata: Metadata, model: GgufModel, fields: Fields) -> Fields:
    """OLMo 2; its successor has the same name in files, and windows."""
    _plain(metadata)
    metadata.refuse("attention.sliding_window")
    return {}
