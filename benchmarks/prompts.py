"""Prompts of an exact length in a model's own tokens."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from penstock.bench.prompts import WORDS

Encode = Callable[[str], Sequence[int]]

ATTEMPTS = 100
TRIES_FOR_A_PLACE = 50


def exact_prompt(encode: Encode, tokens: int, source: random.Random) -> str:
    """A text of random words that `encode`, special tokens included, makes `tokens` long.

    Raises:
        ValueError: words of this vocabulary do not add up to that length.
    """
    for _ in range(ATTEMPTS):
        text = _grow(encode, tokens, source)
        if text is not None:
            return text
    raise ValueError(f"no words found that make a prompt of {tokens} tokens")


def write_dataset(path: Path, encode: Encode, *, count: int, tokens: int, seed: int) -> None:
    """Write `count` different prompts as JSON lines."""
    source = random.Random(seed)
    lines = [orjson.dumps({"prompt": exact_prompt(encode, tokens, source)}) for _ in range(count)]
    path.write_bytes(b"\n".join(lines) + b"\n")


def _grow(encode: Encode, tokens: int, source: random.Random) -> str | None:
    """Add words while they fit; None if the last place stays empty."""
    text = source.choice(WORDS)
    length = len(encode(text))
    tries = 0
    while length < tokens and tries < TRIES_FOR_A_PLACE:
        longer = f"{text} {source.choice(WORDS)}"
        longer_length = len(encode(longer))
        if longer_length <= tokens:
            text, length, tries = longer, longer_length, 0
        else:
            tries += 1
    return text if length == tokens else None
