"""The prompts of a benchmark: synthetic ones of a given length, or a dataset."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from penstock.errors import ConfigurationError

Message = dict[str, Any]

# Short, common words: about one token each in most vocabularies.
_TEXT = """
the a and to of in it was he she they you we is on at for with as but not be had have one all
said there out up little went big day so then very can see get look come down good came now them
when what like some play run sun tree house dog cat bird fish frog bear boy girl man woman
friend mother father ball box cake book bed door hill lake park road garden forest river happy
sad kind red blue green new old long small warm cold fast slow soft home food water milk hand
head eye foot find give take make want help walk jump sing eat sleep tell ask know think
"""
WORDS = _TEXT.split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text, or the messages of a chat; `output_tokens` overrides the default."""

    text: str | None = None
    messages: tuple[Message, ...] | None = None
    output_tokens: int | None = None


def synthetic_text(words: int, source: random.Random) -> str:
    """A text of `words` random words."""
    return " ".join(source.choices(WORDS, k=words))


def synthetic_prompts(count: int, *, words: int, seed: int) -> list[Prompt]:
    """`count` prompts; the same seed gives the same prompts, and no two share a long prefix."""
    source = random.Random(seed)
    return [Prompt(text=synthetic_text(words, source)) for _ in range(count)]


def words_for_tokens(target_tokens: int, samples: Sequence[tuple[int, int]]) -> int:
    """How many words make a prompt of about `target_tokens`.

    `samples` are two measured pairs (words, prompt tokens) of different length; the line through
    them accounts for what a chat template adds. With fewer samples a word counts as one token.
    """
    if len(samples) < 2:
        return target_tokens
    (words_a, tokens_a), (words_b, tokens_b) = samples[:2]
    if words_a == words_b or tokens_a == tokens_b:
        return target_tokens
    tokens_per_word = (tokens_b - tokens_a) / (words_b - words_a)
    overhead = tokens_a - tokens_per_word * words_a
    return max(1, round((target_tokens - overhead) / tokens_per_word))


def load_dataset(path: Path) -> list[Prompt]:
    """Read prompts: `.jsonl` with `prompt` or `messages` (and `max_tokens`), else one text a line.

    Raises:
        ConfigurationError: the file is unreadable or empty, or a line has another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read the dataset {path}: {error}") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ConfigurationError(f"the dataset {path} has no prompts")
    if path.suffix == ".jsonl":
        return [_parse_line(line, f"{path}, line {number}") for number, line in numbered]
    return [Prompt(text=line) for _, line in numbered]


def repeat_to(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Exactly `count` prompts: the first ones, or all of them repeated."""
    return [prompts[index % len(prompts)] for index in range(count)]


def _parse_line(line: str, where: str) -> Prompt:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ConfigurationError(f"{where} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where} is not an object")
    text, messages, limit = value.get("prompt"), value.get("messages"), value.get("max_tokens")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ConfigurationError(f"{where}: max_tokens is {limit!r}; it must be a positive integer")
    if isinstance(text, str):
        return Prompt(text=text, output_tokens=limit)
    if isinstance(messages, list) and all(isinstance(message, dict) for message in messages):
        return Prompt(messages=tuple(messages), output_tokens=limit)
    raise ConfigurationError(f'{where} has neither a "prompt" string nor a "messages" list')
