"""What shrinking by names gets wrong, by model type.

`first`: fields of the config before it is shrunk; `then`: afterwards.
"""

from typing import Any, Final

_MIXED: Final = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_CONVOLUTIONS: Final = ["conv", "full_attention", "conv", "full_attention"]
_ZAMBA: Final = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
_KINDS_OF_ROPE: Final[dict[str, Any]] = {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 50_000.0},
    },
}
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
    # Rotary angles: of each kind of layer, or in sections
    "cohere_compass": {"then": {"text_config": _KINDS_OF_ROPE}},
    "cohere_compass_text": {"then": _KINDS_OF_ROPE},
    "dbrx": {"then": {"attn_config": {"rope_theta": 10_000.0, "kv_n_heads": 2}}},
    "ernie4_5_vl_moe": {"then": {"text_config": {"rope_parameters": {"mrope_section": [3, 3, 2]}}}},
    # Heads
    "dots3_note": {"then": {"text_config": {"head_dim": 24}}},
    "dots3_note_text": {"then": {"head_dim": 24}},
    # Experts
    "deepseek_ocr2": {
        "then": {"text_config": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}}
    },
    "diffusion_gemma": {
        "then": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}}
    },
    # Parts for pictures and sound
    "chameleon": {"then": {"vocabulary_map": {"<image>": 310}}},
    "emu3": {"then": {"vocabulary_map": {"<image>": 310, "<|extra_200|>": 311}}},
    "granite4_vision": {"then": {"deepstack_layer_map": [[0, 1]]}},
    "janus": {
        "then": {
            "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
        }
    },
    "molmo2": {"then": {"adapter_config": {"vision_feature_layer": [1, 0]}}},
    "muse_spark": {
        "then": {"audio_config": {"hidden_sizes": [32] * 4, "depths": [1] * 4, "out_hidden_size": 64}}
    },
    # Indexes over keys
    "qwen4_exp": {"then": {"text_config": _COMPRESSED}},
    "qwen4_exp_text": {"then": _COMPRESSED},
    # Others
    "blt": {
        "then": {
            "encoder_hash_byte_group_vocab": 64,
            "encoder_hash_byte_group_size": [3, 4],
        }
    },
    "reformer": {"then": {"axial_pos_embds_dim": [32, 32], "axial_pos_shape": [32, 64]}},
}
"""`...` as a value takes the field away."""
