"""Conventions of filling in the middle, one by one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.requests.infill import Infilling, infilling_of
from penstock.engine.requests.tokenizer import Tokenizer
from tests.tiny import byte_tokenizer

FAMILIES: dict[str, tuple[list[str], str, list[str]]] = {
    # Control tokens in the vocabulary, the prompt for "a" and "b", what ends a middle.
    "Qwen": (
        ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|file_sep|>"],
        "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
        ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|file_sep|>"],
    ),
    "CodeGemma": (
        ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>"],
        "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
        ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>"],
    ),
    "StarCoder": (
        ["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"],
        "<fim_prefix>a<fim_suffix>b<fim_middle>",
        ["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"],
    ),
    "SantaCoder": (
        ["<fim-prefix>", "<fim-middle>", "<fim-suffix>"],
        "<fim-prefix>a<fim-suffix>b<fim-middle>",
        ["<fim-prefix>", "<fim-middle>", "<fim-suffix>"],
    ),
    "Code Llama": (
        ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"],
        "▁<PRE>a▁<SUF>b▁<MID>",
        ["▁<EOT>"],
    ),
    "DeepSeek-Coder": (
        ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
        "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>",
        ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    ),
    "Codestral": (
        ["[PREFIX]", "[SUFFIX]"],
        "[SUFFIX]b[PREFIX]a",
        ["[PREFIX]", "[SUFFIX]"],
    ),
}


def tokenizer_with(names: list[str]) -> Tokenizer:
    fast = byte_tokenizer()
    fast.backend_tokenizer.add_special_tokens(names)
    return Tokenizer(fast)


@pytest.mark.parametrize("family", FAMILIES)
def test_conventions(family: str) -> None:
    names, written, ends = FAMILIES[family]
    tokenizer = tokenizer_with(names)
    infilling = infilling_of(tokenizer)
    assert infilling is not None
    before, behind = (tuple(tokenizer.encode(text)) for text in ("a", "b"))
    prompt = infilling.prompt(before, behind)
    assert prompt.ids == tuple(tokenizer.encode(written))
    assert prompt.ids[prompt.begin : prompt.end] == before
    ids_of: Any = tokenizer.hf.convert_tokens_to_ids
    assert infilling.ends == {ids_of(end) for end in ends}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_token_less_is_none(family: str) -> None:
    names = FAMILIES[family][0]
    needed = 2 if family == "Codestral" else 3
    for name in names[:needed]:
        assert infilling_of(tokenizer_with([other for other in names if other != name])) is None


def test_most_models_have_none() -> None:
    assert infilling_of(Tokenizer(byte_tokenizer())) is None


@given(
    before=st.integers(0, 40),
    behind=st.integers(1, 40),
    opening=st.integers(0, 2),
    keep=st.integers(6, 100),
    ordered=st.booleans(),
)
def test_cut_prompts(before: int, behind: int, opening: int, keep: int, *, ordered: bool) -> None:
    """As much as fits, what is nearest to the middle; neither text pushes all of the other out."""
    infilling = Infilling(prefix=1, suffix=2, middle=3 if ordered else None, ends=frozenset())
    texts = tuple(range(100, 100 + before)), tuple(range(200, 200 + behind))
    begins = tuple(range(10, 10 + opening))
    prompt = infilling.prompt(*texts, opening=begins, keep=keep)
    room = keep - infilling.controls - opening
    kept = [[i for i in prompt.ids if low <= i < low + 100] for low in (100, 200)]
    assert len(prompt.ids) == infilling.controls + opening + min(room, before + behind)
    assert tuple(kept[0]) == texts[0][before - len(kept[0]) :]
    assert tuple(kept[1]) == texts[1][: len(kept[1])]
    assert list(prompt.ids[prompt.begin : prompt.end]) == kept[0]
    assert len(kept[0]) >= min(before, room - room // 4)
    assert len(kept[1]) >= min(behind, room // 4)
    assert prompt.ids[:opening] == begins
