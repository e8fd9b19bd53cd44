"""Tiny random models of many architectures and a byte tokenizer; nothing is downloaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB = 320
EOS = 300
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": EOS,
}
GQA = {**COMMON, "num_key_value_heads": 2, "head_dim": 16}
WINDOW = {"sliding_window": 24}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GQA,
    "qwen2": {**GQA, "use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen3": GQA,
    "qwen3_moe": {**GQA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "mistral": {**GQA, **WINDOW},
    "mixtral": {**GQA, "num_local_experts": 4},
    "gemma": GQA,
    "gemma2": {**GQA, **WINDOW, "attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {**GQA, **WINDOW, "query_pre_attn_scalar": 8},
    "phi": COMMON,
    "phi3": GQA,
    "opt": {**COMMON, "ffn_dim": 96, "word_embed_proj_dim": 64},
    "gpt2": {**COMMON, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512},
    "gpt_neox": COMMON,
    "biogpt": COMMON,
    "olmo2": GQA,
    "cohere": GQA,
    "granite": {**GQA, "attention_multiplier": 0.3, "logits_scaling": 2.0},
    "starcoder2": {**GQA, **WINDOW},
    "smollm3": GQA,
    "glm4": GQA,
    "ernie4_5": GQA,
    "exaone4": {**GQA, **WINDOW, "sliding_window_pattern": 2},
    "llama4_text": {
        **GQA,
        "intermediate_size_mlp": 96,
        "num_local_experts": 2,
        "attention_chunk_size": 512,
        "interleave_moe_layer_step": 2,
    },
    "gpt_oss": {
        **GQA,
        **WINDOW,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "deepseek_v3": {
        **COMMON,
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 32,
    },
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, ids 0 to 255; `<eos>` is token 300."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: i for i, character in enumerate(characters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return fast


WORDS = ("the", "a", "is", "cat", "def", "return")
INFILLING = ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Pieces with spaces in front and a token for each byte, as Llama 2 and Code Llama have them.

    Printable ASCII and the bytes of it are twins: two ids, one text. Every prompt begins with `<s>`
    (token 1); ids from `len()` of it on have no token, where the model has an embedding for them.
    """
    letters = [chr(code) for code in range(0x21, 0x7F)]
    steps = [
        ("▁" + word[: size - 1], word[size - 1])
        for word in WORDS
        for size in range(1, len(word) + 1)
    ]
    merges = list(dict.fromkeys(steps))
    grown = list(dict.fromkeys(left + right for left, right in merges))
    vocab = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    vocab += [piece for piece in grown if piece not in vocab]
    rust = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(vocab)},
            merges=merges,
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    rust.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    rust.decoder = decoders.Sequence(  # type: ignore[assignment]
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    rust.add_special_tokens(["<unk>", "<s>", "</s>", *INFILLING])
    rust.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=rust, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    return fast


def token_of(tokenizer: PreTrainedTokenizerFast, piece: str) -> int:
    """The id of one piece of the vocabulary."""
    found = tokenizer.convert_tokens_to_ids(piece)
    assert isinstance(found, int)
    return found


def enlarge_weights(model: torch.nn.Module) -> None:
    """Larger than the initialisation: attention must matter, and logits must differ."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, 0.12)
            elif "sinks" in name:
                parameter.normal_(0.0, 1.0)
            elif "bias" in name:
                parameter.normal_(0.0, 0.05)


def save_tiny(
    kind: str,
    folder: Path,
    base: dict[str, Any] | None = None,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    twins: Mapping[int, int] | None = None,
    **changes: Any,
) -> Path:
    """Save a random model of architecture `kind` with the byte tokenizer; returns its folder.

    `base`: its configuration, where it is none of `ARCHITECTURES`. `tokenizer`: another one.
    `twins`: token -> one that it is nearly as likely as, everywhere.
    """
    tokenizer = byte_tokenizer() if tokenizer is None else tokenizer
    torch.manual_seed(1234)
    config = AutoConfig.for_model(kind, **{**(base or ARCHITECTURES[kind]), **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    enlarge_weights(model)
    with torch.no_grad():
        for token, like in (twins or {}).items():
            model.lm_head.weight[token] = model.lm_head.weight[like] * 0.99
    model.generation_config.eos_token_id = changes.get("eos_token_id", EOS)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
