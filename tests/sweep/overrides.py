"""What shrinking by names gets wrong, by model type.

`first`: fields of the config before it is shrunk; `then`: afterwards.
"""

from typing import Any, Final

_MIXED: Final = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_CONVOLUTIONS: Final = ["conv", "full_attention", "conv", "full_attention"]
_ZAMBA: Final = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
_COMPRESSED: Final[dict[str, Any]] = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 32,
    "indexer_compress_ratio": 4,
    "ngram_vocab_size_base": 64,
}

OVERRIDES: Final[dict[str, dict[str, dict[str, Any]]]] = {
    # States beside keys and values: every kind of layer, in an order that alternates
    "bamba": {"then": {"attn_layer_indices": [1, 3]}},
    "falcon_h1": {"then": {"mamba_d_head": 16}},
    "granitemoehybrid": {"then": {"layer_types": _MIXED}},
    "jamba": {
        "then": {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
        }
    },
    "lfm2": {"then": {"layer_types": _CONVOLUTIONS}},
    "lfm2_moe": {"then": {"layer_types": _CONVOLUTIONS, "num_dense_layers": 1}},
    "lfm2_vl": {"then": {"text_config": {"layer_types": _CONVOLUTIONS}}},
    "mamba2": {"then": {"num_heads": 8}},
    "zamba": {
        "then": {
            "layers_block_type": _ZAMBA,
            "attention_hidden_size": 128,
            "attention_head_dim": 32,
        }
    },
    "xlstm": {"then": {"qk_dim_factor": 1.0, "num_blocks": 3}},
    "zamba2": {
        "then": {
            "layers_block_type": _ZAMBA,
            "hybrid_layer_ids": ...,
            "num_key_value_heads": 4,
            "attention_hidden_size": 128,
            "attention_head_dim": 32,
        }
    },
    "zaya": {"then": {"layer_types": ["hybrid", "hybrid_sliding"] * 2, "sliding_window": 48}},
    # Indexes over keys
    "qwen4_exp": {"then": {"text_config": _COMPRESSED}},
    "qwen4_exp_text": {"then": _COMPRESSED},
}
"""`...` as a value takes the field away."""
