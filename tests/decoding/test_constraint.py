"""Masks and places in a grammar, held against reading the answer anew with a second matcher."""

import random
from typing import Any

import numpy as np
import pytest
import torch

from penstock.decoding.constraint.constraint import Constraint
from penstock.decoding.constraint.drafting import ConstrainedDrafting
from penstock.decoding.constraint.grammar import GrammarError, Grammars
from penstock.decoding.constraint.masks import Masks, forbidden_on_device
from penstock.decoding.drafting.draft import Draft
from penstock.engine.requests.grammar_vocabulary import grammars_of
from penstock.engine.requests.tokenizer import Tokenizer
from tests.tiny import EOS, VOCAB, byte_tokenizer, sentencepiece_tokenizer

LARK = 'start: "a" ("b" | "c"){2} ("dd" | "de") | "xyz"'


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(byte_tokenizer(), [EOS])


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return grammars_of(tokenizer, VOCAB)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def allowed(mask: np.ndarray[Any, Any]) -> set[int]:
    return {i for i in range(32 * mask.size) if mask[i // 32] >> (i % 32) & 1}


def after(grammars: Grammars, tokens: list[int]) -> Constraint:
    constraint = grammars.compile(LARK).start()
    constraint.read(tokens)
    return constraint


def test_every_row_of_a_tree_has_the_mask_of_its_path(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    chooser = random.Random(1)
    letters = ids(tokenizer, "abcdexyz")
    for _ in range(200):
        size = chooser.randrange(1, 12)
        parents = [chooser.randrange(-1, i) for i in range(size)]
        draft = Draft([chooser.choice(letters) for _ in range(size)], parents)
        begun = ids(tokenizer, chooser.choice(["", "a", "ab", "x"]))
        constraint = after(grammars, begun)
        masks = constraint.masks(draft)
        right = constraint.allowed(draft)
        for i in range(size):
            path = draft.path(i)
            fresh = after(grammars, begun)
            # A path is allowed if each of its tokens is in the mask of those before it.
            fits = True
            for token in path:
                fits = fits and token in allowed(fresh.masks()[0])
                if fits:
                    fresh.read([token])
            assert (i in right) == fits
            assert allowed(masks[1 + i]) == (allowed(fresh.masks()[0]) if fits else set())
        assert allowed(masks[0]) == allowed(after(grammars, begun).masks()[0])


def test_an_end_in_a_draft_does_not_end_the_answer(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    """A matcher that has read an end would allow nothing else, even when it is taken back."""
    constraint = grammars.compile('start: ("ab" | "c")+').start()
    constraint.read(ids(tokenizer, "ab"))
    (before,) = constraint.masks()
    assert EOS in allowed(before)
    draft = Draft([*ids(tokenizer, "cc"), EOS, *ids(tokenizer, "c")])
    for _ in range(2):
        assert constraint.allowed(draft) == [0, 1]
        assert np.array_equal(constraint.masks(draft)[0], before)
    assert np.array_equal(constraint.masks()[0], before)
    constraint.read(ids(tokenizer, "c"))
    assert allowed(constraint.masks()[0]) == allowed(before)


def test_an_end_token_without_a_name_is_allowed_where_the_answer_may_end(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    constraint = grammars.compile('start: "a"+').start()
    assert EOS not in allowed(constraint.masks()[0])
    constraint.read(ids(tokenizer, "a"))
    assert {EOS, *ids(tokenizer, "a")} <= allowed(constraint.masks()[0])
    assert not constraint.complete


def test_a_complete_answer_forces_nothing_more(grammars: Grammars, tokenizer: Tokenizer) -> None:
    constraint = grammars.compile('start: "abc"').start()
    assert constraint.forced()
    constraint.read(ids(tokenizer, "ab"))
    assert not constraint.complete
    copy = constraint.fork()
    constraint.read(ids(tokenizer, "c"))
    assert constraint.complete
    assert constraint.forced() == []
    assert not copy.complete, "forks go their own way"


def test_an_end_token_without_a_name_ends_the_answer(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    constraint = grammars.compile('start: "a"+').start()
    constraint.read([*ids(tokenizer, "a"), EOS])
    assert constraint.complete
    assert constraint.failure is None


@pytest.mark.parametrize("size", [31, 32, 33, 100, 257])
def test_a_device_unpacks_masks_alike(size: int) -> None:
    chooser = np.random.default_rng(0)
    bits = chooser.integers(-(2**31), 2**31, size=(2, -(-size // 32)), dtype=np.int32)
    found = forbidden_on_device(torch.from_numpy(bits), size)
    logits = torch.zeros(2, size)
    Masks(rows=[0, 1], bits=bits).apply(logits)
    assert found.equal(logits == float("-inf"))


def test_grammars_are_remembered_up_to_a_length(tokenizer: Tokenizer) -> None:
    grammars = grammars_of(tokenizer, VOCAB)
    first = grammars.compile('start: "a"')
    assert grammars.compile('start: "a"') is first
    for number in range(40):
        grammars.compile(f'start: "{number}{"b" * 60_000}"')
    assert grammars.compile('start: "a"') is not first
    assert first.start().forced() == ids(tokenizer, "a"), "who holds it goes on"


@pytest.mark.parametrize("size", [31, 32, 33, 100, 257])
def test_masks_reach_as_far_as_the_logits(size: int) -> None:
    chooser = np.random.default_rng(0)
    bits = chooser.integers(-(2**31), 2**31, size=(2, 4), dtype=np.int32)
    logits = torch.randn(3, size)
    before = logits.clone()
    Masks(rows=[0, 2], bits=bits).apply(logits)
    assert logits[1].equal(before[1])
    for row, mask in ((0, bits[0]), (2, bits[1])):
        left = {i for i in range(size) if logits[row, i] > float("-inf")}
        assert left == {i for i in allowed(mask) if i < size}
    whole = before[[0, 2]].clone()
    Masks(rows=[0, 1], bits=bits).apply(whole)
    assert whole.equal(logits[[0, 2]])


def test_forced_tokens_beyond_the_model_are_not_drafted(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    constraint = grammars.compile('start: "abcdefgh" | "abcdefgi"').start()
    forced = constraint.forced()
    assert forced[:3] == ids(tokenizer, "abc")
    drafting = ConstrainedDrafting(constraint, None, vocab_size=min(forced))
    assert not drafting.fixed
    assert drafting.sizes(10, 0.1) == []


def test_sentencepiece_tokens_spell_the_answer() -> None:
    hf = sentencepiece_tokenizer()
    tokenizer = Tokenizer(hf, [2])
    grammars = grammars_of(tokenizer, len(hf) + 40)
    constraint = grammars.compile('start: "the cat" | "thecat"').start()
    text = b""
    while not constraint.complete:
        token = min(allowed(constraint.masks()[0]))
        constraint.read([token])
        text += tokenizer.token_bytes(token)
    assert text in (b"the cat", b"thecat")


def test_what_cannot_be_compiled_says_why(grammars: Grammars) -> None:
    with pytest.raises(GrammarError, match="nobody"):
        grammars.compile("start: nobody").start()


def test_a_tokenizer_that_cannot_be_used_refuses_grammars_alone() -> None:
    class Huge(Tokenizer):
        """A token longer than llguidance can hold, for which it panics."""

        def __init__(self) -> None:
            hf = byte_tokenizer()
            hf.add_special_tokens({"eos_token": "a" * 3000})
            super().__init__(hf, [EOS])

    with pytest.raises(GrammarError, match="this model's tokenizer"):
        grammars_of(Huge(), VOCAB).compile('start: "a"')
