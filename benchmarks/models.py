"""The models that benchmarks run: the embedded one, and a random Llama of a useful size.

The random one exists for its speed only: 12 layers, 768 wide, 85 million parameters besides the
embedding, which it shares with the output. It is made once, into a cache folder, from a seed.
"""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.provenance import ROOT
from penstock.server.bench.prompts import WORDS

NANO = ROOT / "models" / "nano" / "weights"
VOCABULARY_TOKENS = 32_000
SEED = 0
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def model_folder(name: str) -> Path:
    """Folder of the model `nano` or `llama-85m`; the latter is made if it is not there yet.

    Raises:
        ValueError: there is no such model.
    """
    if name == "nano":
        return NANO
    if name != "llama-85m":
        raise ValueError(f"there is no model {name!r}; there are nano and llama-85m")
    folder = cache_folder() / name
    if not folder.exists():
        _make_llama(folder)
    return folder


def cache_folder() -> Path:
    """`penstock-benchmarks` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "penstock-benchmarks"


def _make_llama(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    # Renamed at the end, so that a run which was cut leaves no half model behind.
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(VOCABULARY_TOKENS),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(unfinished)
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(unfinished)
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
