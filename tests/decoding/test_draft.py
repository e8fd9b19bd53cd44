"""Chains and trees of guesses: which are right, and what their rows look like."""

import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from penstock.decoding.drafting.acceptance import Acceptance
from penstock.decoding.drafting.draft import Draft, drafted_rows
from penstock.decoding.drafting.history import History
from penstock.decoding.drafting.lookahead import NgramPool
from penstock.decoding.drafting.suggest import Followers, Memory, Suggester
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


def test_followers_give_each_token_its_share() -> None:
    followers = Followers(most=50)
    followers.learn([1, 2, 3, 1, 2, 3, 1, 2, 4, 1, 2, 3], 0)
    assert followers.after((9, 2)) == {3: 0.6, 4: 0.2}
    assert followers.after((77,)) == {}
    for number in range(1000, 2000):
        followers.learn([number, number + 1], 0)
    assert 40 <= len(followers) <= 50
    assert followers.after((1999,)) == {2000: 0.5}
    assert followers.after((2,)) == {}, "the oldest are forgotten"


def test_what_follows_differently_now_takes_over() -> None:
    followers = Followers()
    for token in range(2, 8):
        followers.learn([1, token] * 30, 0)
    found = followers.after((1,))
    assert len(found) <= 4
    assert 7 in found
    assert sum(found.values()) < 1


def guesses(suggester: Suggester, count: int, **options: Any) -> list[int]:
    made = suggester.suggest(count, count, **options)
    return suggester.draft(made).tokens


def test_suggestions_learn_which_source_to_trust() -> None:
    memory = Memory()
    chooser = random.Random(2)
    # The text repeats a phrase; what a pass "carried" is always wrong.
    phrase = [chooser.randrange(1000) for _ in range(12)]
    tokens = list(phrase)
    suggester = Suggester(memory, tokens, longest=8, shortest=1, shared=True)
    right = 0
    for _ in range(20):
        for token in phrase:
            right += guesses(suggester, 4, carried=[5000, 5000])[:1] == [token]
            tokens.append(token)
            suggester.learn(tokens)
    assert right > 200
    assert memory.of_match[8].share > 0.95
    assert memory.of_carried[0].share < 0.3
    assert guesses(suggester, 4, carried=[5000, 5000]) == phrase[:4]
    assert suggester.expected(4) > 3.5


def test_the_likeliest_guesses_come_first_and_parents_before_their_children() -> None:
    memory = Memory()
    said = [1, 2, 3, 4] * 6 + [1, 5, 6] * 3
    teacher = Suggester(memory, [0], longest=8, shortest=1, shared=True)
    teacher.learn([0, *said])
    suggester = Suggester(memory, [9, 1], longest=8, shortest=1, shared=True)
    made = suggester.suggest(8, 3)
    draft = suggester.draft(made)
    assert draft.parents is not None
    assert draft.tokens[0] == 2
    assert set(draft.tokens) >= {2, 3, 4, 5, 6}
    assert all(parent < index for index, parent in enumerate(draft.parents))
    assert max(draft.depths) <= 3
    gains = [suggester.expected(n + 1) - suggester.expected(n) for n in range(made)]
    assert gains == sorted(gains, reverse=True)
    roots = [i for i, parent in enumerate(draft.parents) if parent < 0]
    assert sum(gains[i] for i in roots) <= 1


def test_earlier_answers_are_remembered_where_they_may_be() -> None:
    memory = Memory()
    said = [5, 6, 7, 8, 9, 10]
    first = Suggester(memory, [1], longest=8, shortest=1, shared=True)
    first.learn([1, *said, *said, *said])
    second = Suggester(memory, [2, 5], longest=8, shortest=1, shared=True)
    assert guesses(second, 3) == [6, 7, 8]
    alone = Suggester(memory, [2, 5], longest=8, shortest=1, shared=False)
    assert guesses(alone, 3) == []
