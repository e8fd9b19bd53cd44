"""Chains and trees of draft tokens: which are right, and what their rows look like."""

import random
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from penstock.decoding.drafting.acceptance import Acceptance
from penstock.decoding.drafting.draft import Draft, drafted_rows
from penstock.decoding.drafting.history import History
from penstock.decoding.drafting.lookahead import NgramPool, Worth
from penstock.decoding.rule_state import RuleState
from penstock.decoding.sampling import Sampling


def test_a_chain_is_right_up_to_its_first_mistake() -> None:
    draft = Draft([5, 6, 7])
    assert draft.depths == [1, 2, 3]
    assert draft.accepted([5, 6, 7, 8]) == [0, 1, 2]
    assert draft.accepted([5, 9, 7, 8]) == [0]
    assert draft.accepted([4, 6, 7, 8]) == []


def test_a_tree_is_walked_along_its_predictions() -> None:
    #        5 - 6
    # root <
    #        7 - 8 - 9
    draft = Draft([5, 6, 7, 8, 9], [-1, 0, -1, 2, 3])
    assert draft.depths == [1, 2, 1, 2, 3]
    assert draft.path(4) == [7, 8, 9]
    assert draft.accepted([7, 0, 0, 8, 9, 1]) == [2, 3, 4]
    assert draft.accepted([5, 8, 0, 8, 9, 1]) == [0]
    assert draft.accepted([1, 0, 0, 0, 0, 0]) == []


@dataclass
class _Row:
    sampling: Sampling = field(default_factory=Sampling)
    tokens: list[int] = field(default_factory=lambda: [1, 2, 3])
    prompt_length: int = 2
    answer_start: int = 2
    rule_state: RuleState | None = None


def test_a_draft_token_has_those_before_it_in_its_history() -> None:
    row = _Row()
    rows = drafted_rows(row, Draft([5, 6, 7], [-1, 0, -1]))
    assert [list(one.tokens) for one in rows] == [
        [1, 2, 3],
        [1, 2, 3, 5],
        [1, 2, 3, 5, 6],
        [1, 2, 3, 7],
    ]
    deep, joined = rows[2].tokens, [1, 2, 3, 5, 6]
    assert len(deep) == 5
    for i in range(-5, 5):
        assert deep[i] == joined[i]
        for j in range(-7, 8):
            assert deep[i:j] == joined[i:j]
    assert (deep[2:], deep[:2], deep[:]) == (joined[2:], joined[:2], joined)
    with pytest.raises(IndexError):
        deep[5]


def brute_force(
    tokens: list[int], count: int, longest: int, shortest: int
) -> tuple[int, list[int]]:
    for length in range(min(longest, len(tokens)), shortest - 1, -1):
        for start in range(len(tokens) - length - 1, -1, -1):
            if tokens[start : start + length] == tokens[-length:]:
                return length, tokens[start + length : start + length + count]
    return 0, []


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
        tokens.append(chooser.choice(ids))
        history.extend(tokens[-1:])
        count, shortest = chooser.randrange(1, 6), chooser.randrange(1, 3)
        found = history.match(count, longest=3, shortest=shortest)
        assert found == brute_force(tokens, count, 3, shortest)


def test_the_pool_keeps_the_newest_ngrams_of_a_token() -> None:
    pool = NgramPool(2)
    for ngram in ([1, 2, 3], [1, 4, 5], [1, 2, 3], [1, 6, 7], [2, 0, 0]):
        pool.add(ngram, is_text=ngram[1] == 6)
    assert pool.after(1) == [((6, 7), True), ((2, 3), False)]
    assert pool.after(2) == [((0, 0), False)]
    assert pool.after(9) == []


def test_the_pool_and_the_window_are_worth_what_they_draft() -> None:
    text_is_right, window_is_right = Worth(2), Worth(2)
    paths = [((5, 6, 7), True), ((5, 8, 9), False)]
    for _ in range(200):
        text_is_right.observe(paths, [5, 6, 1], windowed=True)
        window_is_right.observe(paths, [5, 8, 9], windowed=True)
    assert text_is_right.of_rank == pytest.approx([2, 0], abs=0.01)
    assert text_is_right.of_window == pytest.approx(0, abs=0.01)
    assert window_is_right.of_rank == pytest.approx([1, 0], abs=0.01)
    assert window_is_right.of_window == pytest.approx(2, abs=0.01)


def test_acceptance_follows_what_happens() -> None:
    good, bad = Acceptance(), Acceptance()
    for _ in range(40):
        good.observe(8, 8)
        bad.observe(8, 0)
    assert good.rate > 0.97
    assert bad.rate < 0.03
    assert good.expected(8) > 7
    assert bad.expected(8) < 0.1


def test_acceptance_begins_where_earlier_requests_ended() -> None:
    earlier = Acceptance()
    first = Acceptance(earlier)
    for _ in range(40):
        first.observe(8, 0)
    assert Acceptance(earlier).rate < 0.03
    for _ in range(40):
        Acceptance(earlier).observe(8, 8)
    assert Acceptance(earlier).rate > 0.97
    assert first.rate < 0.03, "its own experience counts for more"


def test_what_was_given_up_is_tried_again_ever_more_seldom() -> None:
    acceptance = Acceptance()
    trials: list[int] = []
    for step in range(3000):
        if acceptance.take_trial():
            trials.append(step)
            acceptance.observe(4, 0)
        else:
            acceptance.skip(1)
    assert 6 <= len(trials) <= 60
    gaps = [b - a for a, b in pairwise(trials) if b - a > 1]
    assert gaps == sorted(gaps)
    assert (gaps[0], gaps[-1]) == (65, 513)
    # And believed again when it pays again.
    for _ in range(600):
        if acceptance.take_trial():
            acceptance.observe(4, 4)
        else:
            acceptance.skip(1)
        if acceptance.rate > 0.9:
            break
    assert acceptance.rate > 0.9


def test_one_of_many_sequences_makes_the_trial() -> None:
    earlier = Acceptance()
    sequences = [Acceptance(earlier) for _ in range(8)]
    for _ in range(4):
        for one in sequences:
            one.skip(1)
    assert [one.take_trial() for one in sequences] == [True] + [False] * 7
