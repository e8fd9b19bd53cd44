"""What shrinking by names gets wrong, by model type.

`first`: fields of the config before it is shrunk; `then`: afterwards; `scale`: a factor for all
weights, where answers of a random model are always the same.
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
_SECTIONS: Final[dict[str, Any]] = {
    "then": {"text_config": {"rope_parameters": {"mrope_section": [4, 2, 2]}}}
}
_YARN: Final[dict[str, Any]] = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 256,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_CODES: Final[dict[str, Any]] = {
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
}
_COMPRESSED: Final[dict[str, Any]] = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 32,
    "indexer_compress_ratio": 4,
    "ngram_vocab_size_base": 64,
}

OVERRIDES: Final[dict[str, dict[str, Any]]] = {
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
    # Rotary angles: of each kind of layer, or in sections
    "cohere_compass": {"then": {"text_config": _KINDS_OF_ROPE}},
    "cohere_compass_text": {"then": _KINDS_OF_ROPE},
    "dbrx": {"then": {"attn_config": {"rope_theta": 10_000.0, "kv_n_heads": 2, "clip_qkv": 8.0}}},
    "ernie4_5_vl_moe": {"then": {"text_config": {"rope_parameters": {"mrope_section": [3, 3, 2]}}}},
    "glm46v": _SECTIONS,
    "glm4v": _SECTIONS,
    "glm4v_moe": {"then": {"text_config": {"rope_parameters": {"mrope_section": [2, 1, 1]}}}},
    "glm_ocr": _SECTIONS,
    "glmga": _SECTIONS,
    "hunyuan_vl": _SECTIONS,
    "paddleocr_vl": _SECTIONS,
    "qwen2_vl": _SECTIONS,
    "qwen2_5_vl": _SECTIONS,
    "qwen2_5_omni_thinker": {"then": {**_SECTIONS["then"], "vision_start_token_id": 307}},
    "qwen3_omni_moe_thinker": {"then": {"vision_start_token_id": 307}},
    "mistral4": {"then": {"rope_parameters": {**_YARN, "partial_rotary_factor": 1 / 3}}},
    "ministral3": {"then": {"rope_parameters": _YARN}},
    "step3p7": {"then": {"text_config": {**_KINDS_OF_ROPE, "sliding_window": 48}}},
    # Heads
    "dots3_note": {
        "then": {
            "text_config": {"head_dim": 24},
            "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
            "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
        }
    },
    "dots3_note_text": {"then": {"head_dim": 24}},
    # Experts
    "deepseek_ocr2": {
        "then": {"text_config": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}}
    },
    "diffusion_gemma": {
        "then": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}}
    },
    # Parts for pictures and sound
    "chameleon": {"then": {"vocabulary_map": {"<image>": 310}, "vq_config": _CODES}},
    "emu3": {
        "then": {"vocabulary_map": {"<image>": 310, "<|extra_200|>": 311}, "vq_config": _CODES}
    },
    "granite4_vision": {"then": {"deepstack_layer_map": [[0, 1]], "downsample_rate": "1/2"}},
    "janus": {"then": {"vq_config": _CODES}},
    "molmo2": {"then": {"adapter_config": {"vision_feature_layer": [1, 0]}}},
    "muse_spark": {
        "then": {
            "audio_config": {"hidden_sizes": [32] * 4, "depths": [1] * 4, "out_hidden_size": 64}
        }
    },
    # Indexes over keys
    "qwen4_exp": {"then": {"text_config": _COMPRESSED}},
    "qwen4_exp_text": {"then": _COMPRESSED},
    # Others
    "data2vec-text": {"scale": 0.5},
    "moshi": {"scale": 2.0},
    "roberta": {"scale": 0.5},
    "roc_bert": {"scale": 0.5},
    "xmod": {"then": {"default_language": "en_XX"}, "scale": 0.5},
    "zaya": {
        "then": {"layer_types": ["hybrid", "hybrid_sliding"] * 2, "sliding_window": 48},
        "scale": 5.0,
    },
    "blt": {
        "then": {
            "encoder_hash_byte_group_vocab": 64,
            "encoder_hash_byte_group_size": [3, 4],
        }
    },
    "reformer": {"then": {"axial_pos_embds_dim": [32, 32], "axial_pos_shape": [32, 64]}},
}
"""`...` as a value takes the field away."""

NO_TEXT: Final[dict[str, str]] = {
    "gemma4_assistant": "it drafts for a larger model, whose keys it reads",
    "gemma4_unified_assistant": "it drafts for a larger model, whose keys it reads",
    "musicgen": "it generates sound",
    "musicgen_melody": "it generates sound",
    "pi0": "it generates movements",
    "shieldgemma2": "it classifies pictures",
}
"""Types that stand in transformers' lists, and have no text to compare."""
