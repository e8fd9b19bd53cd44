import random
from pathlib import Path

import pytest

from penstock.bench.load import poisson_arrivals
from penstock.bench.prompts import (
    Prompt,
    load_dataset,
    repeat_to,
    synthetic_prompts,
    synthetic_text,
    words_for_tokens,
)
from penstock.errors import ConfigurationError


def test_prompts_are_a_function_of_the_seed() -> None:
    assert synthetic_prompts(5, words=9, seed=1) == synthetic_prompts(5, words=9, seed=1)
    assert synthetic_prompts(5, words=9, seed=1) != synthetic_prompts(5, words=9, seed=2)


def test_prompts_of_one_run_differ() -> None:
    prompts = synthetic_prompts(100, words=16, seed=0)
    assert len({prompt.text for prompt in prompts}) == 100


def test_text_has_the_words_asked_for() -> None:
    assert len(synthetic_text(123, random.Random(0)).split()) == 123


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([], 64),
        ([(8, 8)], 64),
        ([(8, 8), (72, 72)], 64),
        ([(8, 24), (72, 152)], 28),
        ([(8, 100), (72, 100)], 64),
        ([(8, 108), (72, 172)], 1),
    ],
    ids=["none", "one", "one token a word", "two and template", "flat", "template too long"],
)
def test_words_for_tokens(samples: list[tuple[int, int]], words: int) -> None:
    assert words_for_tokens(64, samples) == words


def test_jsonl_dataset(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "one", "max_tokens": 7}\n\n{"messages": [{"role": "user", "content": "two"}]}\n'
    )
    assert load_dataset(path) == [
        Prompt(text="one", output_tokens=7),
        Prompt(messages=({"role": "user", "content": "two"},)),
    ]


def test_text_dataset(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n  two\n", encoding="utf-8")
    assert load_dataset(path) == [Prompt(text="one"), Prompt(text="  two")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no prompts"),
        (b"\xff\xfe", "cannot read"),
        (b'{"prompt": "x"}\n{"prompt": 5}', "line 2"),
        (b"{", "line 1 is not JSON"),
        (b"[1]", "not an object"),
        (b'{"prompt": "x", "max_tokens": 0}', "max_tokens is 0"),
        (b'{"messages": ["x"]}', "neither"),
    ],
    ids=["empty", "encoding", "type", "json", "array", "limit", "messages"],
)
def test_bad_dataset_is_refused_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        load_dataset(path)


def test_missing_dataset(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        load_dataset(tmp_path / "absent.txt")


def test_repeat_to() -> None:
    prompts = [Prompt(text="a"), Prompt(text="b")]
    assert [p.text for p in repeat_to(prompts, 5)] == ["a", "b", "a", "b", "a"]
    assert [p.text for p in repeat_to(prompts, 1)] == ["a"]


def test_arrivals_are_poisson() -> None:
    """Mean of 20,000 exponential gaps: fails once in about 10^9 seeds at six standard errors."""
    arrivals_s = poisson_arrivals(20_001, rate_per_s=50, seed=0)
    assert arrivals_s == poisson_arrivals(20_001, rate_per_s=50, seed=0)
    assert arrivals_s[0] == 0
    assert arrivals_s[-1] / 20_000 == pytest.approx(1 / 50, rel=6 / 20_000**0.5)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_arrivals(count: int) -> None:
    assert len(poisson_arrivals(count, rate_per_s=1, seed=0)) == count
