"""Tiny tokenizers of the kinds that models have, with control tokens of every flag."""

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CONTROL = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "[INST]", "<s>", "</s>")
_LETTERS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"|<>/[]{}()_-%\n\t é☃"
)

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' ~ m.role ~ '\n' + m.content ~ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _with_control(backend: Tokenizer) -> PreTrainedTokenizerFast:
    special = {"<|im_start|>", "<|im_end|>", "<s>", "</s>"}
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in CONTROL if t in special]
    )
    backend.add_tokens(
        [
            AddedToken("<think>", normalized=False),
            AddedToken("</think>", normalized=True),
            AddedToken("[INST]", normalized=False, lstrip=True, rstrip=True),
            AddedToken("   ", normalized=False),
        ]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = TEMPLATE
    return fast


def byte_level() -> PreTrainedTokenizerFast:
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {"he": 256, "<|": 257, "|>": 258}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("h", "e"), ("<", "|"), ("|", ">")]))
    untyped: Any = tokenizer
    untyped.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    untyped.decoder = decoders.ByteLevel()
    return _with_control(tokenizer)


def sentencepiece(scheme: str) -> PreTrainedTokenizerFast:
    """Byte-fallback BPE over metaspace, as Llama and Mistral have it."""
    pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *_LETTERS.replace(" ", ""), "▁h"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=[("▁", "h")], byte_fallback=True, unk_token="<unk>")
    )
    untyped: Any = tokenizer
    untyped.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    untyped.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return _with_control(tokenizer)


def prepending() -> PreTrainedTokenizerFast:
    """The older form of the same: a normalizer that prepends."""
    fast = sentencepiece("never")
    untyped: Any = fast.backend_tokenizer
    untyped.pre_tokenizer = None
    untyped.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return fast


def unigram() -> PreTrainedTokenizerFast:
    """Its vocabulary holds the texts of control tokens as pieces."""
    pieces: list[tuple[str, float]] = [("<unk>", 0.0), ("</s>", 0.0), ("<s>", 0.0), ("▁", -2.0)]
    pieces += [(c, -3.0) for c in _LETTERS.replace(" ", "")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    untyped: Any = tokenizer
    untyped.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    untyped.decoder = decoders.Metaspace()
    return _with_control(tokenizer)


def word_piece() -> PreTrainedTokenizerFast:
    letters = [c.lower() for c in _LETTERS if not c.isspace()]
    pieces = ["<unk>", "</s>", *letters, *(f"##{c}" for c in letters)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="<unk>"))
    untyped: Any = tokenizer
    untyped.normalizer = normalizers.BertNormalizer(lowercase=True)
    untyped.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    untyped.decoder = decoders.WordPiece()
    return _with_control(tokenizer)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "metaspace-first": lambda: sentencepiece("first"),
    "metaspace-always": lambda: sentencepiece("always"),
    "metaspace-never": lambda: sentencepiece("never"),
    "prepending": prepending,
    "unigram": unigram,
    "word-piece": word_piece,
}
EXACT = ("byte-level",)
"""Those whose decoder gives back what was encoded."""
