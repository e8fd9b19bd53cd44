"""The tokenizer in the metadata of a GGUF file, built with `tokenizers`.

Two kinds: `gpt2`, byte pairs with merges (how text is split first: `splits.py`), and `llama`,
SentencePiece's byte pairs, whose merges follow from the scores of the pieces. transformers reads
both as well, but splits by GPT-2's expression where it does not know the name, and cuts control
tokens to pieces that have letters beyond the byte alphabet (DeepSeek's).
"""

import re
from itertools import pairwise
from typing import Any, Final

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from ..stages import stage
from .config import token_count
from .metadata import Metadata, told
from .splits import SPLITS

_TOKENS: Final = "tokenizer.ggml.tokens"
_MERGES: Final = "tokenizer.ggml.merges"
_TYPES: Final = "tokenizer.ggml.token_type"
_SCORES: Final = "tokenizer.ggml.scores"
_PRE: Final = "tokenizer.ggml.pre"
_MODEL: Final = "tokenizer.ggml.model"
TEMPLATE: Final = "tokenizer.chat_template"

_LONGEST_TOKEN: Final = 1024
_MOST_LETTERS: Final = 1 << 28
"""Sum of the squared lengths of pieces: how many letters the search for merges copies."""
_UNKNOWN: Final = 2
_CONTROL: Final = 3
_USER: Final = 4
_UNUSED: Final = 5
_SPACE: Final = "▁"
_FILLER: Final = re.compile(r"\[PAD\d+\]")


def build_tokenizer(metadata: Metadata) -> PreTrainedTokenizerFast:
    """The tokenizer, with its special tokens and chat templates.

    Raises:
        ConfigurationError: it is of a kind that is not served, or a list is damaged.
    """
    tokens = _tokens(metadata)
    kind = metadata.text_or(_MODEL, None)
    makers = {"gpt2": _byte_level, "llama": _pieces}
    if kind not in makers:
        raise metadata.wrong(_MODEL, f"is {told(kind)}, and one of {', '.join(makers)} is expected")
    types = _types(metadata, len(tokens))
    with stage(f"{metadata.file}: the tokenizer cannot be built"):
        backend: Tokenizer = makers[kind](metadata, tokens, types)
        backend.add_special_tokens(_added(tokens, types, _CONTROL, _UNKNOWN))
        backend.add_tokens(_added(tokens, types, _USER))
        _begin_and_end(metadata, backend, tokens, kind)
        return _wrapped(metadata, backend, tokens)


def _tokens(metadata: Metadata) -> list[str]:
    count = token_count(metadata)
    tokens: list[str] = metadata.find(_TOKENS)
    if len(set(tokens)) < count:
        twice = next(a for a, b in pairwise(sorted(tokens)) if a == b)
        raise metadata.wrong(_TOKENS, f"has {told(twice)} twice")
    longest = max(tokens, key=len)
    if len(longest) > _LONGEST_TOKEN:
        raise metadata.wrong(
            _TOKENS,
            f"has a token of {len(longest)} letters, and at most {_LONGEST_TOKEN} are read",
        )
    return tokens


def _types(metadata: Metadata, count: int) -> list[int]:
    types = metadata.list_or_none(_TYPES, int, "integers")
    if types is not None and len(types) != count:
        raise metadata.wrong(_TYPES, f"has {len(types)} values, and there are {count} tokens")
    return [1] * count if types is None else types


def _added(tokens: list[str], types: list[int], *wanted: int) -> list[AddedToken]:
    special = _USER not in wanted
    return [
        AddedToken(token, normalized=False, special=special)
        for token, kind in zip(tokens, types, strict=True)
        if kind in wanted and token
    ]


def _merges(metadata: Metadata) -> list[tuple[str, str]] | None:
    found = metadata.list_or_none(_MERGES, str, "strings")
    if found is None:
        return None
    merges: list[tuple[str, str]] = []
    for i, merge in enumerate(found):
        # The first letter may be a space of its own.
        cut = merge.find(" ", 1)
        if cut < 0 or cut + 1 == len(merge):
            raise metadata.wrong(
                f"{_MERGES}[{i}]", f"is {told(merge)}, and two tokens are expected"
            )
        merges.append((merge[:cut], merge[cut + 1 :]))
    return merges


def _byte_level(metadata: Metadata, tokens: list[str], types: list[int]) -> Tokenizer:
    name = metadata.text_or(_PRE, None) or "default"
    if name not in SPLITS:
        raise metadata.wrong(_PRE, f"is {told(name)}; served: {', '.join(sorted(SPLITS))}")
    split = SPLITS[name]
    merges = _merges(metadata)
    if merges is None:
        raise metadata.wrong(_MERGES, "is missing")
    backend = Tokenizer(
        models.BPE(vocab=_vocabulary(tokens, types), merges=merges, ignore_merges=split.whole_words)
    )
    steps: list[Any] = [
        pre_tokenizers.Split(Regex(each), behavior="isolated") for each in split.expressions
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return backend


def _vocabulary(tokens: list[str], types: list[int]) -> dict[str, int]:
    """Numbers that only fill the embedding have no token, as in the model's own tokenizer."""
    return {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != _UNUSED or not _FILLER.fullmatch(token)
    }


def _pieces(metadata: Metadata, tokens: list[str], types: list[int]) -> Tokenizer:
    scores = metadata.list_or_none(_SCORES, (int, float), "numbers")
    if scores is None or len(scores) != len(tokens):
        has = "is missing" if scores is None else f"has {len(scores)} values"
        raise metadata.wrong(_SCORES, f"{has}, and there are {len(tokens)} tokens")
    vocabulary = _vocabulary(tokens, types)
    merges = _merges(metadata)
    if merges is None:
        merges = _implied_merges(metadata, vocabulary, scores, types)
    unknown = next((t for t, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    first = metadata.flag_or("tokenizer.ggml.add_space_prefix", True)
    replaced: list[Any] = [normalizers.Replace(" ", _SPACE)]
    backend.normalizer = normalizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [normalizers.Prepend(_SPACE), *replaced] if first else replaced
    )
    steps: list[Any] = [
        decoders.Replace(_SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        *([decoders.Strip(" ", 1, 0)] if first else []),
    ]
    backend.decoder = decoders.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    return backend


def _implied_merges(
    metadata: Metadata, vocabulary: dict[str, int], scores: list[Any], types: list[int]
) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the best pieces first."""
    pieces = [(piece, i) for piece, i in vocabulary.items() if types[i] in (1, _USER)]
    if sum(len(piece) ** 2 for piece, _ in pieces) > _MOST_LETTERS:
        raise metadata.wrong(_TOKENS, "has too many long tokens; it is damaged")
    found: list[tuple[float, int, str, str]] = []
    for piece, i in pieces:
        for cut in range(len(piece) - 1, 0, -1):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[i], -cut, left, right))
    found.sort(key=lambda merge: merge[:2])
    return [(left, right) for *_, left, right in found]


def _begin_and_end(metadata: Metadata, backend: Tokenizer, tokens: list[str], kind: str) -> None:
    """Tokens that begin or end every prompt."""
    pieces = kind == "llama"
    split = SPLITS.get(metadata.text_or(_PRE, None) or "default")
    begins = pieces or (split is not None and split.begins)
    around: list[list[str]] = [[], []]
    for place, (name, default) in enumerate((("bos", begins), ("eos", False))):
        token = metadata.token_or_none(f"{name}_token_id", len(tokens))
        flag = f"tokenizer.ggml.add_{name}_token"
        wanted = metadata.flag_or(flag, default and token is not None)
        if wanted and token is None:
            raise metadata.wrong(flag, f"is true, and {name}_token_id is missing")
        if wanted and token is not None:
            around[place].append(tokens[token])
    before, behind = around
    if before or behind:
        ids = {token: tokens.index(token) for token in (*before, *behind)}
        backend.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=[*before, "$A", *behind],
            pair=[*before, "$A", *behind, *before, "$B:1", *behind],
            special_tokens=list(ids.items()),
        )


def _wrapped(metadata: Metadata, backend: Tokenizer, tokens: list[str]) -> PreTrainedTokenizerFast:
    names = {
        "bos_token": "bos_token_id",
        "eos_token": "eos_token_id",
        "unk_token": "unknown_token_id",
        "pad_token": "padding_token_id",
    }
    numbers = {name: metadata.token_or_none(key, len(tokens)) for name, key in names.items()}
    special = {name: tokens[i] for name, i in numbers.items() if i is not None}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **special
    )
    wrapped.chat_template = _templates(metadata)
    return wrapped


def _templates(metadata: Metadata) -> str | dict[str, str] | None:
    """The chat template, and those with names beside it."""
    usual = metadata.text_or(TEMPLATE, None)
    prefix = f"{TEMPLATE}."
    named = {
        key.removeprefix(prefix): metadata.text_or(key, None) or ""
        for key in metadata.values
        if key.startswith(prefix)
    }
    if not named:
        return usual
    return named if usual is None else {"default": usual, **named}
