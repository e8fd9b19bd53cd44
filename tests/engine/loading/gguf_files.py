"""Writes GGUF files from transformers folders, with the `gguf` package's writer and names.

What llama.cpp's converter changes in tensors is written down here a second time, from its source:
`permute` (conversion/llama.py), norms plus 1 (conversion/gemma.py), experts in one tensor.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.tiny import byte_tokenizer

NAMES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe", "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3",
    "phi3": "phi3", "granite": "granite", "smollm3": "smollm3", "olmo2": "olmo2",
}  # fmt: skip
PERMUTED = ("llama", "mistral", "mixtral", "granite", "smollm3")
SHIFTED = ("gemma", "gemma2", "gemma3_text")
_EXPERT = re.compile(r"model\.layers\.(\d+)\.(\w+)\.experts\.(\d+)\.(\w+)\.weight")
Change = Callable[[dict[str, Any]], object]
"""Of the metadata: key -> value; a list of strings, integers or floats is an array."""


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer with a few merges; `<eos>` is token 300."""
    plain = byte_tokenizer()
    described = json.loads(plain.backend_tokenizer.to_str())
    described["model"]["merges"] = [["h", "e"], ["l", "l"], ["he", "ll"], ["1", "2"]]
    vocabulary = described["model"]["vocab"]
    vocabulary.update({"he": 256, "ll": 257, "hell": 258, "12": 259, "<eos>": 300})
    for token in described["added_tokens"]:
        token["id"] = 300
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)), eos_token="<eos>"
    )
    made.chat_template = plain.chat_template
    return made


def save_gguf(
    folder: Path,
    file: Path,
    *,
    kind: str = "F32",
    metadata: Change | None = None,
    tensors: Callable[[dict[str, np.ndarray]], object] | None = None,
    packed: Mapping[str, np.ndarray] | None = None,
    parts_of: int = 0,
) -> Path:
    """Write the model of `folder`; returns `file`.

    `kind`: of the matrices; vectors are F32. `metadata`, `tensors`: changes before they are
    written. `packed`: matrices in blocks of `kind` already, uint8 `[N, row bytes]`. `parts_of`: so
    many tensors a part.
    """
    config = json.loads((folder / "config.json").read_text())
    values = _metadata(folder, config)
    if metadata is not None:
        metadata(values)
    weights = gguf_tensors(folder)
    if tensors is not None:
        tensors(weights)
    writer = GGUFWriter(file, NAMES[config["model_type"]], split_max_tensors=parts_of)
    for key, value in values.items():
        _add(writer, key, value)
    of = GGMLQuantizationType[kind]
    for name, values_ in weights.items():
        if packed is not None and name in packed:
            writer.add_tensor(name, packed[name], raw_dtype=of)
        elif kind == "F32" or values_.ndim == 1:
            writer.add_tensor(name, values_.astype(np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values_, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def gguf_tensors(folder: Path) -> dict[str, np.ndarray]:
    """The folder's tensors as llama.cpp's converter would store them, float32."""
    config = json.loads((folder / "config.json").read_text())
    kind = config["model_type"]
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[NAMES[kind]], config["num_hidden_layers"])
    made: dict[str, np.ndarray] = {}
    for name, values in _stacked(load_file(folder / "model.safetensors")).items():
        stem, dot, suffix = name.rpartition(".")
        found = names.get_name(stem)
        assert found is not None, name
        made[f"{found}{dot}{suffix}"] = _converted(name, values.float(), config).numpy()
    return made


def set_parameter(folder: Path, name: str, values: torch.Tensor) -> None:
    """Change one tensor of a folder."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights[name] = values
    save_file(weights, file, metadata={"format": "pt"})


def vary_norms(folder: Path) -> None:
    """Norms that differ from each other, with few bits, so that adding 1 and taking it is exact."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    torch.manual_seed(5)
    for name, values in weights.items():
        if "norm" in name:
            weights[name] = values + torch.randint(-64, 64, values.shape) / 256
    save_file(weights, file, metadata={"format": "pt"})


def permute(weights: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's order of the rows of queries and keys."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def _stacked(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One tensor of all experts in place of one each."""
    found: dict[str, dict[int, torch.Tensor]] = {}
    others: dict[str, torch.Tensor] = {}
    for name, values in weights.items():
        expert = _EXPERT.fullmatch(name)
        if expert is None:
            others[name] = values
            continue
        layer, block, number, part = expert.groups()
        # As llama.cpp's converter calls them for Mixtral, and for everyone else.
        stem = f"layers.{layer}.feed_forward" if "sparse" in block else f"model.layers.{layer}.mlp"
        found.setdefault(f"{stem}.experts.{part}.weight", {})[int(number)] = values
    return others | {
        name: torch.stack([each for _, each in sorted(experts.items())])
        for name, experts in found.items()
    }


def _converted(name: str, values: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    kind, heads = config["model_type"], config["num_attention_heads"]
    if kind in PERMUTED and ".q_proj." in name:
        return permute(values, heads)
    if kind in PERMUTED and ".k_proj." in name:
        return permute(values, config["num_key_value_heads"])
    if kind in SHIFTED and name.endswith("norm.weight"):
        return values + 1
    return values


def _metadata(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    prefix = NAMES[config["model_type"]]
    rope = config["rope_parameters"]
    whole = rope.get("full_attention", rope)
    model: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": float(whole["rope_theta"]),
        "vocab_size": config["vocab_size"],
    }
    if config.get("head_dim"):
        model |= {
            "attention.key_length": config["head_dim"],
            "attention.value_length": config["head_dim"],
        }
    for key, name in _OTHERS.items():
        if config.get(name) is not None:
            model[key] = config[name]
    if "sliding_attention" in rope:
        model["rope.freq_base_swa"] = rope["sliding_attention"]["rope_theta"]
    return {f"{prefix}.{key}": value for key, value in model.items()} | _vocabulary(folder, config)


_OTHERS = {
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.sliding_window": "sliding_window",
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def _vocabulary(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Byte pairs, as llama.cpp's converter writes them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    special = {int(i) for i in tokenizer.added_tokens_decoder}
    ids = range(config["vocab_size"])
    described = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    values: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [by_id.get(i, f"[PAD{i}]") for i in ids],
        "tokenizer.ggml.token_type": [3 if i in special else 1 if i in by_id else 5 for i in ids],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in described["merges"]],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
    }
    if isinstance(tokenizer.chat_template, str):
        values["tokenizer.chat_template"] = tokenizer.chat_template
    return values


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    add[type(value)](key, value)
