"""The models that benchmarks run: the embedded one, random Llamas of three sizes, and two of other
kinds.

The random ones exist for their speed only; embedding and output are one matrix. `llama-85m`: 12
layers, 768 wide, 85 million parameters besides the embedding. `llama-4.6m`: 6 layers, 256 wide,
4.6 million in all. `llama-1b`, for GPUs: 16 layers, 2048 wide, 8 KV heads. `hybrid-109m`: of Qwen
3.5's kind, 12 layers of which three attend and nine have gated delta rules. `mixture-112m`: of
Qwen 3's kind, 8 layers with 16 experts, 4 for each token; both in bfloat16, as such checkpoints
come. They are made once, into a cache folder, from a seed.
"""

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.provenance import ROOT
from penstock.bench.prompts import WORDS

NANO = ROOT / "models" / "nano" / "weights"
SEED = 0
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What tells the random Llamas apart."""

    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers in float32."""
        return 2 * 4 * self.layers * self.kv_heads * (self.width // self.heads)


SIZES = {
    "llama-4.6m": Size(vocabulary=2048, width=256, feed_forward=640, layers=6, heads=4, kv_heads=2),
    "llama-85m": Size(
        vocabulary=32_000, width=768, feed_forward=2048, layers=12, heads=12, kv_heads=12
    ),
    "llama-1b": Size(
        vocabulary=32_000, width=2048, feed_forward=8192, layers=16, heads=32, kv_heads=8
    ),
}


KINDS = {
    "hybrid-109m": (
        "Qwen3_5TextConfig",
        {
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "linear_num_key_heads": 6,
            "linear_num_value_heads": 12,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
        },
    ),
    "mixture-112m": (
        "Qwen3MoeConfig",
        {
            "hidden_size": 768,
            "moe_intermediate_size": 256,
            "intermediate_size": 256,
            "num_hidden_layers": 8,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "num_experts": 16,
            "num_experts_per_tok": 4,
        },
    ),
}
"""Configuration classes of transformers, and their fields."""
VOCABULARY_OF_KINDS = 32_000


def model_folder(name: str) -> Path:
    """Folder of `nano` or of a random model, which is made if it is not there yet.

    Raises:
        ValueError: there is no such model.
    """
    if name == "nano":
        return NANO
    if name not in SIZES and name not in KINDS:
        known = ", ".join((*SIZES, *KINDS))
        raise ValueError(f"there is no model {name!r}; there are nano, {known}")
    folder = cache_folder() / name
    if not folder.exists():
        if name in SIZES:
            _make(folder, SIZES[name].vocabulary, *_llama(SIZES[name]), dtype="float32")
        else:
            _make(folder, VOCABULARY_OF_KINDS, *KINDS[name], dtype="bfloat16")
    return folder


def long_model_folder(name: str, positions: int) -> Path:
    """The same model with a longer context: rotary positions have no weights."""
    source = model_folder(name)
    folder = cache_folder() / f"{name}-{positions}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.name != "config.json" and not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = positions
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def cache_folder() -> Path:
    """`penstock-benchmarks` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "penstock-benchmarks"


def _llama(size: Size) -> tuple[str, dict[str, Any]]:
    return "LlamaConfig", {
        "hidden_size": size.width,
        "intermediate_size": size.feed_forward,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
    }


def _make(folder: Path, vocabulary: int, kind: str, fields: dict[str, Any], *, dtype: str) -> None:
    """Save a random model. `kind`: its configuration class in transformers; `fields`: of that."""
    import torch
    import transformers

    # Renamed at the end, so that a run which was cut leaves no half model behind.
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(vocabulary),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(unfinished)
    torch.manual_seed(SEED)
    config = getattr(transformers, kind)(
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **fields,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.to(getattr(torch, dtype)).save_pretrained(unfinished)
    unfinished.rename(folder)


def train_tokenizer(vocabulary_tokens: int) -> Tokenizer:
    """Byte-level BPE over made-up words; digits stand alone, as in the embedded model's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_tokens,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_made_up_text(), trainer)
    return tokenizer


def _made_up_text() -> Iterator[str]:
    """Lines of pseudo-words with more distinct pieces than the vocabulary has places."""
    source = random.Random(SEED)
    syllables = [
        a + b + c for a in "bdfghklmnprstvwz" for b in "aeiou" for c in ("", "n", "r", "s")
    ]
    made_up = ["".join(source.choices(syllables, k=source.randint(1, 4))) for _ in range(60_000)]
    for start in range(0, len(made_up), 20):
        line = made_up[start : start + 20]
        yield " ".join([*line, *line, *source.choices(WORDS, k=20)])
