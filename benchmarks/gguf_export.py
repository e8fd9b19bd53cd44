"""A Llama folder as GGUF, for comparisons with llama.cpp: the same weights in its file format.

Names and metadata follow the GGUF specification (ggml, docs/gguf.md). llama.cpp rotates pairs of
neighbours, so the rows of queries and keys are permuted.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

_LAYER_NAMES: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMAL, _CONTROL = 1, 3
"""Kinds of tokens in GGUF."""


def export(folder: Path, path: Path, kind: str) -> None:
    """Write the model in `folder` to `path`; `kind`: "f32", or "q8_0" for its matrices."""
    gguf: Any = import_module("gguf")  # needed by this comparison alone
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    head_size = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, folder)
    weights: dict[str, Tensor] = model.state_dict()
    tensors = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for theirs, name in _LAYER_NAMES.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            if name in heads:
                weight = _neighbours(weight, heads[name])
            tensors[f"blk.{layer}.{name}.weight"] = weight
    quantised = gguf.GGMLQuantizationType.Q8_0 if kind == "q8_0" else None
    for name, tensor in tensors.items():
        array = tensor.contiguous().numpy()
        if quantised is not None and array.ndim == 2:
            array = gguf.quants.quantize(array, quantised)
            writer.add_tensor(name, array, raw_dtype=quantised)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _neighbours(weight: Tensor, heads: int) -> Tensor:
    """Rows i and i + n/2 of each head, which rotate together, side by side."""
    pairs = weight.view(heads, 2, -1, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _add_tokenizer(writer: Any, folder: Path) -> None:
    """Byte-level BPE as it stands in tokenizer.json; prompts are given as ids all the same."""
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    by_id = {number: token for token, number in data["model"]["vocab"].items()}
    special = {entry["id"]: entry["content"] for entry in data["added_tokens"]}
    tokens = [special.get(i, by_id.get(i, f"<{i}>")) for i in range(max({*by_id, *special}) + 1)]
    merges = [
        merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL if i in special else _NORMAL for i in range(len(tokens))])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
