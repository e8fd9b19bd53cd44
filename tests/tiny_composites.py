"""Tiny random checkpoints of several parts: a text model with a tower for pictures."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.tiny import EOS, GQA, WINDOW, byte_tokenizer, enlarge_weights

VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 8,
    "out_hidden_size": 64,
}
SECTIONS: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "mrope_section": [4, 2, 2],
    }
}
TOKENS: dict[str, Any] = {"image_token_id": 310, "video_token_id": 311}

COMPOSITES: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**GQA, **WINDOW, "query_pre_attn_scalar": 8},
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
    },
    "gemma4": {
        "text_config": {
            **GQA,
            **WINDOW,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 320,
            "global_head_dim": 16,
            "pad_token_id": 0,
        },
        "vision_config": {**VISION, "head_dim": 16},
        "audio_config": None,
    },
    "mistral3": {
        "text_config": {**GQA, "model_type": "mistral"},
        "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 16},
    },
    "llava": {
        "text_config": {**GQA, "model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
    },
    "qwen2_5_vl": {
        "text_config": {**GQA, **SECTIONS},
        "vision_config": {**QWEN_VISION, "fullatt_block_indexes": [1]},
        **TOKENS,
    },
    "qwen3_vl": {
        "text_config": {**GQA, **SECTIONS},
        "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0]},
        **TOKENS,
    },
    "qwen3_5": {
        "text_config": {
            **GQA,
            **SECTIONS,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        "vision_config": QWEN_VISION,
        **TOKENS,
    },
    "glm4v": {
        "text_config": {**GQA, **SECTIONS},
        "vision_config": {**QWEN_VISION, "image_size": 32},
        **TOKENS,
    },
    "internvl": {
        "text_config": {**GQA, "model_type": "qwen3"},
        "vision_config": {**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
    },
    "llama4": {
        "text_config": {
            **GQA,
            "intermediate_size_mlp": 96,
            "num_local_experts": 2,
            "attention_chunk_size": 512,
            "interleave_moe_layer_step": 2,
        },
        "vision_config": {**VISION, "vision_output_dim": 32, "projector_output_dim": 32},
    },
}


def save_composite(kind: str, folder: Path) -> Path:
    """Save a random checkpoint of `kind` with the byte tokenizer; returns its folder."""
    torch.manual_seed(1234)
    config = AutoConfig.for_model(kind, **deepcopy(COMPOSITES[kind]))  # it writes into them
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").float()
    enlarge_weights(model)
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
