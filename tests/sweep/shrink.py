"""Shrinks a configuration of transformers by the names of its fields.

The default of a field is that of a large model. What is known by name becomes tiny; everything else
stays, so that a model is as its class has it. Lists with an entry for each layer keep one layer of
every kind.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, cast

HIDDEN: Final = 64
HEADS: Final = 4
HEAD_SIZE: Final = 16
LAYERS: Final = 4
MOST_LAYERS: Final = 6
VOCABULARY: Final = 320
CONTEXT: Final = 2048
WINDOW: Final = 48

PAD, BOS, EOS, OTHERS = 0, 1, 300, 301
"""Token ids. Prompts have none of them, nor those from `OTHERS` on, which stand for pictures."""

_NAMES: Final = (
    # Widths
    (HIDDEN, "hidden_size d_model n_embd embed_dim emb_dim dim_model embedding_size embedding_dim"),
    (HIDDEN, "word_embed_proj_dim input_embedding_size output_embedding_size lru_width"),
    (HIDDEN, "attention_hidden_size out_hidden_size output_dim projection_dim moe_hidden_size"),
    (HIDDEN, "projector_hidden_size cross_hidden_size encoder_hidden_size text_hidden_size"),
    (96, "intermediate_size ffn_dim d_ff d_inner n_inner dff encoder_ffn_dim decoder_ffn_dim"),
    (96, "ffn_hidden_size dim_ff dense_intermediate_size intermediate_size_mlp feed_forward_size"),
    (32, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size"),
    (32, "expert_ffn_hidden_size share_expert_dim moe_shared_expert_intermediate_size"),
    (32, "shared_experts_intermediate_size router_hidden_size"),
    (16, "hidden_size_per_layer_input laurel_rank d_rel adapter_rank hc_lowrank gated_norm_rank"),
    (16, "ple_embed_dim kv_lora_rank q_lora_rank o_lora_rank"),
    # Heads
    (HEADS, "num_attention_heads n_head n_heads num_heads attention_heads num_query_groups"),
    (HEADS, "encoder_attention_heads decoder_attention_heads num_decoder_attention_heads"),
    (HEADS, "num_encoder_attention_heads swa_num_attention_heads num_sliding_attention_heads"),
    (HEADS, "resampler_heads resampler_n_heads linear_num_heads linear_num_value_heads"),
    (2, "num_key_value_heads swa_num_key_value_heads n_head_kv num_kv_heads index_n_heads"),
    (2, "num_global_key_value_heads linear_num_key_heads"),
    (
        HEAD_SIZE,
        "head_dim d_kv d_head dim_head kv_channels v_head_dim global_head_dim swa_head_dim",
    ),
    (HEAD_SIZE, "attention_head_size qk_nope_head_dim index_head_dim swa_v_head_dim"),
    (HEAD_SIZE, "resampler_dim_head resampler_head_dim linear_head_dim linear_key_head_dim"),
    (HEAD_SIZE, "linear_value_head_dim mamba_d_head mamba_head_dim mamba_headdim"),
    (8, "qk_rope_head_dim rotary_dim"),
    (HEAD_SIZE + 8, "qk_head_dim"),
    # Experts
    (4, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    (2, "num_experts_per_tok num_experts_per_token moe_k moe_topk zero_expert_num"),
    (2, "n_group num_expert_group topk_group o_groups"),
    (1, "n_shared_experts num_shared_experts moe_num_shared_experts"),
    # States and convolutions
    (8, "ssm_state_size state_size mamba_d_state mamba_n_heads mamba_num_heads"),
    (4, "mamba_dt_rank time_step_rank"),
    (2, "mamba_n_groups mamba_ngroups n_groups"),
    (2 * HIDDEN, "mamba_d_ssm"),
    (32, "mamba_chunk_size chunk_size"),
    # Lengths
    (WINDOW, "sliding_window sliding_window_size attention_window_size window_size"),
    (WINDOW, "local_attention swa_window_size"),
    (CONTEXT, "max_position_embeddings n_positions n_ctx max_seq_len context_length"),
    (CONTEXT, "model_max_length attention_chunk_size keep_window_size floor_scale"),
    (CONTEXT, "log_scaling_n_floor"),
    (32, "index_topk rel_extent"),
    (16, "index_block_size block_size"),
    (4, "index_topk_blocks"),
    # Layers
    (LAYERS, "num_hidden_layers n_layer n_layers num_layers layers encoder_layers decoder_layers"),
    (LAYERS, "num_decoder_layers"),
    (2, "num_encoder_layers depth vision_depth max_window_layers"),
    (1, "first_k_dense_replace num_dense_layers moe_layer_start_index"),
    (0, "num_kv_shared_layers num_nextn_predict_layers"),
    # Pictures and sound, of which nothing is tried here
    (8, "patch_size temporal_patch_size"),
    (32, "image_size"),
    (4, "num_query_tokens"),
)
_SIZES: Final = {name: size for size, names in _NAMES for name in names.split()}
_VOCABULARY: Final = re.compile(r"(^|_)vocab_size(_|$)|^vocabulary_map_size$")
_TOKEN: Final = re.compile(r"_token_(id|index)$|^(image|video|audio)_token$")
_KEPT: Final = ("transformers_version", "architectures", "_name_or_path", "id2label", "label2id")
_ABSENT: Final = {
    "head_dim": HEAD_SIZE,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
}
"""Where the class has a field without a default, the model is one that has it."""
_LAYER_INDICES: Final = (
    "full_attn_idxs",
    "moe_layers",
    "kv_source_layers",
    "rope_scaling_layers",
    "mlp_only_layers",
)


def shrunk(fields: dict[str, Any]) -> dict[str, Any]:
    """Tiny values for the fields of a config, and for those of its parts."""
    layers = _layers(fields)
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _KEPT:
            continue
        small[name] = _small(name, value, fields, layers)
    if fields.get("tie_word_embeddings") is not None:
        small["tie_word_embeddings"] = False  # else the likeliest token is the last one again
    _tell_tokens_apart(small)
    _fit(small, fields)
    return small


def _small(name: str, value: Any, fields: dict[str, Any], layers: list[int]) -> Any:
    if isinstance(value, dict):
        inner = cast(dict[str, Any], value)
        if name == "per_layer_config":
            return {
                str(new): shrunk(inner[key])
                for new, old in enumerate(layers)
                for key in inner
                if int(key) == old
            }
        if name.endswith("_config") or "model_type" in inner:
            return shrunk(inner)
        return _small_rope(inner) if name == "rope_parameters" else inner
    if isinstance(value, list):
        return _small_list(name, cast(list[Any], value), fields, layers)
    if value is None:
        return _ABSENT.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if _VOCABULARY.search(name):
        return min(value, VOCABULARY)
    if name == _name_of_layers(fields) and layers:
        return len(layers)
    if name not in _SIZES or value <= 0:
        return value
    return _SIZES[name] if _SIZES[name] == CONTEXT else min(value, _SIZES[name])


def _small_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Positions of the usual kind; of several kinds of layers, each."""
    if any(isinstance(each, dict) for each in rope.values()):
        return {k: _small_rope(v) if isinstance(v, dict) else v for k, v in rope.items()}
    kept = ("rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")
    kind = "proportional" if rope.get("rope_type") == "proportional" else "default"
    return {"rope_type": kind} | {name: rope[name] for name in kept if name in rope}


def _small_list(
    name: str, values: list[Any], fields: dict[str, Any], layers: list[int]
) -> list[Any]:
    if name in _LAYER_INDICES:
        return [new for new, old in enumerate(layers) if old in values]
    if name in _SIZES:
        values = [_SIZES[name]] * len(values)
    count = fields.get(_name_of_layers(fields) or "")
    return [values[old] for old in layers] if layers and len(values) == count else values


def _name_of_layers(fields: dict[str, Any]) -> str | None:
    names = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    return next((name for name in names if type(fields.get(name)) is int), None)


def _layers(fields: dict[str, Any]) -> list[int]:
    """Which layers are kept: one of each kind at least."""
    count = fields.get(_name_of_layers(fields) or "", 0)
    lists = list(_by_layer(fields, count))
    kinds: dict[tuple[Any, ...], int] = {}
    for layer in range(count):
        kinds.setdefault(tuple(str(values[layer]) for values in lists), layer)
    kept = sorted(kinds.values())[:MOST_LAYERS]
    others = (layer for layer in range(count) if layer not in kept)
    while len(kept) < min(LAYERS, count):
        kept.append(next(others))
    return sorted(kept)


def _by_layer(fields: dict[str, Any], count: int) -> Iterator[list[Any]]:
    """What fields say of each layer."""
    for name, value in fields.items():
        if isinstance(value, list) and len(cast(list[Any], value)) == count:
            if name in _LAYER_INDICES:
                continue
            yield cast(list[Any], value)
        elif isinstance(value, list) and name in _LAYER_INDICES:
            yield [layer in value for layer in range(count)]
        elif name == "per_layer_config" and isinstance(value, dict):
            changes = {int(key): str(of) for key, of in cast(dict[str, Any], value).items()}
            yield [changes.get(layer) for layer in range(count)]


def _tell_tokens_apart(small: dict[str, Any]) -> None:
    """Special tokens are in the vocabulary, and each of a kind of its own."""
    known = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    others = OTHERS
    for name, value in small.items():
        if not _TOKEN.search(name) or isinstance(value, str):
            continue
        if name in known:
            small[name] = known[name]
        elif type(value) is int:
            small[name], others = others, others + 1


def _fit(small: dict[str, Any], fields: dict[str, Any]) -> None:
    """Make sizes fit that depend on each other."""
    if "qk_rope_head_dim" in fields:
        for name in ("qk_rope_head_dim", "qk_head_dim"):
            if "head_dim" in fields and fields["head_dim"] == fields.get(name):
                small["head_dim"] = small[name]
    heads = fields.get("num_attention_heads")
    if heads is not None and fields.get("num_key_value_heads") == heads:
        small["num_key_value_heads"] = small["num_attention_heads"]
    if small.get("use_sliding_window") is False:
        small["use_sliding_window"] = True
        small["sliding_window"] = WINDOW
        small["layer_types"] = None
    if "is_decoder" in small:
        small["is_decoder"] = True
    rope = small.get("rope_parameters")
    if isinstance(rope, dict):
        _fit_sections(cast(dict[str, Any], rope), small)


def _fit_sections(rope: dict[str, Any], small: dict[str, Any]) -> None:
    """Sections of positions for pictures: together half of what is rotated in a head."""
    for inner in rope.values():
        if isinstance(inner, dict):
            _fit_sections(cast(dict[str, Any], inner), small)
    if rope.get("mrope_section"):
        head = small.get("head_dim") or HIDDEN // HEADS
        half = int(head * rope.get("partial_rotary_factor", 1.0)) // 2
        rest = half // 4
        rope["mrope_section"] = [half - 2 * rest, rest, rest]
