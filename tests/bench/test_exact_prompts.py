import random
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.models import model_folder, train_tokenizer
from benchmarks.prompts import exact_prompt, write_dataset
from penstock.bench.prompts import load_dataset


def by_word(text: str) -> list[int]:
    return [0, *range(len(text.split()))]


def by_byte(text: str) -> list[int]:
    return list(text.encode())


@pytest.mark.parametrize("encode", [by_word, by_byte], ids=["words and a start", "bytes"])
@pytest.mark.parametrize("tokens", [2, 3, 16, 65])
def test_prompts_have_exactly_the_length(encode: Callable[[str], list[int]], tokens: int) -> None:
    for seed in range(20):
        assert len(encode(exact_prompt(encode, tokens, random.Random(seed)))) == tokens


def test_impossible_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="prompt of 1 tokens"):
        exact_prompt(by_word, 1, random.Random(0))


def test_dataset_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    write_dataset(path, by_word, count=5, tokens=9, seed=0)
    texts = [prompt.text or "" for prompt in load_dataset(path)]
    assert len(set(texts)) == 5
    assert {len(text.split()) for text in texts} == {8}


def test_tokenizer_is_byte_level_and_complete() -> None:
    tokenizer = train_tokenizer(600)
    assert tokenizer.get_vocab_size() == 600
    for text in ("the dog", "2048", "naïve € 🙂\n\t"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("2048").ids) == 4


def test_unknown_model() -> None:
    with pytest.raises(ValueError, match="there is no model"):
        model_folder("gpt-5")
