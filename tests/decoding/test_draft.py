"""Chains and trees of guesses: which are right, and what their rows look like."""

import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from penstock.decoding.drafting.acceptance import Acceptance
from penstock.decoding.drafting.draft import Draft, drafted_rows
from penstock.decoding.drafting.history import History
from penstock.decoding.drafting.lookahead import NgramPool
from penstock.decoding.sampling import Sampling


def test_a_chain_is_right_up_to_its_first_mistake() -> None:
    draft = Draft([5, 6, 7])
    assert draft.depths == [1, 2, 3]
    assert draft.right([5, 6, 7, 8]) == [0, 1, 2]
    assert draft.right([5, 9, 7, 8]) == [0]
    assert draft.right([4, 6, 7, 8]) == []


def test_a_tree_is_walked_along_its_predictions() -> None:
    #        5 - 6
    # root <
    #        7 - 8 - 9
    draft = Draft([5, 6, 7, 8, 9], [-1, 0, -1, 2, 3])
    assert draft.depths == [1, 2, 1, 2, 3]
    assert draft.path(4) == [7, 8, 9]
    assert draft.right([7, 0, 0, 8, 9, 1]) == [2, 3, 4]
    assert draft.right([5, 8, 0, 8, 9, 1]) == [0]
    assert draft.right([1, 0, 0, 0, 0, 0]) == []


@dataclass
class _Row:
    sampling: Sampling = field(default_factory=Sampling)
    tokens: list[int] = field(default_factory=lambda: [1, 2, 3])
    prompt_length: int = 2


def test_a_guess_has_the_guesses_before_it_in_its_history() -> None:
    row = _Row()
    rows = drafted_rows(row, Draft([5, 6, 7], [-1, 0, -1]))
    assert [list(one.tokens) for one in rows] == [
        [1, 2, 3],
        [1, 2, 3, 5],
        [1, 2, 3, 5, 6],
        [1, 2, 3, 7],
    ]
    deep = rows[2].tokens
    assert (len(deep), deep[-1], deep[2], deep[0]) == (5, 6, 3, 1)
    assert (deep[2:], deep[-3:], deep[:2]) == ([3, 5, 6], [3, 5, 6], [1, 2])
    with pytest.raises(IndexError):
        deep[5]


def brute_force(
    tokens: list[int], guesses: list[int], count: int, longest: int, shortest: int
) -> list[int]:
    whole = tokens + guesses
    for length in range(min(longest, len(whole)), shortest - 1, -1):
        tail = whole[-length:]
        for start in range(len(tokens) - length - 1, -1, -1):
            if tokens[start : start + length] == tail:
                return tokens[start + length : start + length + count]
    return []


@pytest.mark.parametrize("seed", range(20))
def test_history_finds_what_followed_last_time(seed: int) -> None:
    chooser = random.Random(seed)
    # Ids whose bytes occur inside one another: only whole tokens may match.
    ids = [0, 1, 256, 65536, 2**24, 257, 2**31 - 1]
    tokens = [chooser.choice(ids) for _ in range(chooser.randrange(1, 60))]
    history = History(tokens[:5])
    history.extend(tokens[5:])
    assert len(history) == len(tokens)
    for _ in range(30):
        guesses = [chooser.choice(ids) for _ in range(chooser.randrange(4))]
        count, shortest = chooser.randrange(1, 6), chooser.randrange(1, 3)
        found = history.follow(guesses, count, longest=3, shortest=shortest)
        assert found == brute_force(tokens, guesses, count, 3, shortest)


def test_the_pool_keeps_the_newest_ngrams_of_a_token() -> None:
    pool = NgramPool(2)
    for ngram in ([1, 2, 3], [1, 4, 5], [1, 2, 3], [1, 6, 7], [2, 0, 0]):
        pool.add(ngram)
    assert pool.after(1) == [(6, 7), (2, 3)]
    assert pool.after(2) == [(0, 0)]
    assert pool.after(9) == []


def test_acceptance_follows_what_happens() -> None:
    good, bad = Acceptance(), Acceptance()
    for _ in range(40):
        good.observe(8, 8)
        bad.observe(8, 0)
    assert good.rate > 0.97
    assert bad.rate < 0.03
    assert good.expected(8) > 7
    assert bad.expected(8) < 0.1


def test_what_was_given_up_is_tried_again_ever_more_seldom() -> None:
    acceptance = Acceptance()
    trials: list[int] = []
    for step in range(3000):
        if acceptance.is_trial:
            trials.append(step)
            acceptance.observe(4, 0)
        else:
            acceptance.observe(0, 0)
    assert 6 <= len(trials) <= 60
    gaps = [b - a for a, b in pairwise(trials) if b - a > 1]
    assert gaps == sorted(gaps)
    assert (gaps[0], gaps[-1]) == (65, 513)
    # And believed again when it pays again.
    for _ in range(600):
        acceptance.observe(4 if acceptance.is_trial else 0, 4 if acceptance.is_trial else 0)
        if acceptance.rate > 0.9:
            break
    assert acceptance.rate > 0.9
