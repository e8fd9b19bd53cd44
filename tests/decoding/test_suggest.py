"""Suggestions: what they know, whom they trust, and how likely they say a draft token is."""

import random
from itertools import pairwise
from typing import Any

import pytest

from penstock.decoding.drafting import compiled
from penstock.decoding.drafting.followers import Followers
from penstock.decoding.drafting.lexicon import Lexicon
from penstock.decoding.drafting.suggest import Memory, Suggester
from penstock.kernels.native.library import Library, builds


def test_followers_give_each_token_its_share() -> None:
    followers = Followers(most=50)
    followers.learn([1, 2, 3, 1, 2, 3, 1, 2, 4, 1, 2, 3], 0)
    assert {token: share for token, (share, _) in followers.after((9, 2)).items()} == {
        3: 0.6,
        4: 0.2,
    }
    assert followers.after((77,)) == {}
    for number in range(1000, 2000):
        followers.learn([number, number + 1], 0)
    assert 40 <= len(followers) <= 50
    assert followers.after((1999,))[2000][0] == 0.5
    assert followers.after((2,)) == {}, "the oldest are forgotten"


def test_what_follows_differently_now_takes_over() -> None:
    followers = Followers()
    for token in range(2, 30):
        followers.learn([1, token] * 30, 0)
    found = followers.after((1,))
    assert len(found) <= 16
    assert 29 in found
    assert sum(share for share, _ in found.values()) < 1


BUILDS = builds()[0]
AnyMemory = Memory | compiled.Memory
AnySuggester = Suggester | compiled.Suggester


@pytest.fixture(params=[None, *BUILDS], ids=lambda build: build.name if build else "python")
def memory(request: pytest.FixtureRequest) -> AnyMemory:
    build: Library | None = request.param
    return Memory() if build is None else compiled.Memory(build)


def new(memory: AnyMemory, tokens: list[int], *, shared: bool = True) -> AnySuggester:
    return memory.suggester(tokens, longest=8, shortest=1, shared=shared)


def draft_tokens(suggester: AnySuggester, count: int, **options: Any) -> list[int]:
    made = suggester.suggest(count, count, **options)
    return suggester.draft(made).tokens


def test_suggestions_learn_which_source_to_trust(memory: AnyMemory) -> None:
    chooser = random.Random(2)
    # The text repeats a phrase; what a pass "carried" is always wrong.
    phrase = [chooser.randrange(1000) for _ in range(12)]
    tokens = list(phrase)
    suggester = new(memory, tokens)
    right = 0
    for _ in range(20):
        for token in phrase:
            right += draft_tokens(suggester, 4, carried=[5000, 5000])[:1] == [token]
            tokens.append(token)
            suggester.learn(tokens)
    assert right > 200
    assert draft_tokens(suggester, 4, carried=[5000, 5000]) == phrase[:4]
    assert suggester.expected()[3] > 3.5


def test_the_likeliest_draft_tokens_come_first_and_parents_before_their_children(
    memory: AnyMemory,
) -> None:
    said = [1, 2, 3, 4] * 6 + [1, 5, 6] * 3
    teacher = new(memory, [0])
    teacher.learn([0, *said])
    suggester = new(memory, [9, 1])
    made = suggester.suggest(8, 3)
    gains = [b - a for a, b in pairwise([0, *suggester.expected()])]
    assert len(gains) == made
    assert gains == sorted(gains, reverse=True)
    draft = suggester.draft(made)
    assert draft.parents is not None
    assert set(draft.tokens) >= {2, 3, 4, 5, 6}
    assert all(parent < index for index, parent in enumerate(draft.parents))
    assert max(draft.depths) <= 3
    assert draft.tokens[:3] == [2, 3, 4], "the likeliest path stands together"
    roots = [token for token, parent in zip(draft.tokens, draft.parents, strict=True) if parent < 0]
    assert roots == [2, 5]
    # The fewer, the likelier.
    assert suggester.draft(2).tokens == [2, 3]


def test_earlier_answers_are_remembered_where_they_may_be(memory: AnyMemory) -> None:
    said = [5, 6, 7, 8, 9, 10]
    first = new(memory, [1])
    first.learn([1, *said, *said, *said])
    second = new(memory, [2, 5])
    assert draft_tokens(second, 3) == [6, 7, 8]
    alone = new(memory, [2, 5], shared=False)
    assert draft_tokens(alone, 3) == []


def test_unlikely_draft_tokens_are_left_out(memory: AnyMemory) -> None:
    new(memory, [0]).learn([0, *[1, 2, 3, 4] * 6, *[1, 5, 6] * 3])
    suggester = new(memory, [9, 1])
    everything = suggester.suggest(8, 3)
    likely = suggester.suggest(8, 3, worth=0.3)
    gains = [b - a for a, b in pairwise([0, *suggester.expected()])]
    assert 0 < likely < everything
    assert min(gains) >= 0.3


def test_the_lexicon_learns_which_words_go_together() -> None:
    chooser = random.Random(5)
    lexicon = Lexicon()
    for _ in range(60):
        words = chooser.sample(range(10, 40), 4)
        # Word w is w + 100 in the answer; 1 and 2 are everywhere.
        lexicon.learn([1, *words, 2], [1, *(word + 100 for word in words), 2])
    found = lexicon.expected([1, 12, 25, 2])
    assert {112, 125} <= set(found)
    assert len(found) <= 5
    assert not set(found) & {1, 2}
    assert lexicon.expected([99]) == {}


def test_a_prompt_says_which_of_several_draft_tokens_is_likelier(memory: AnyMemory) -> None:
    chooser = random.Random(6)

    def ask(word: int) -> tuple[list[int], list[int]]:
        # Too far back for an n-gram.
        return [word, 1, 2, 7], [3, 4, word + 100, 5]

    for _ in range(400):
        prompt, answer = ask(chooser.randrange(10, 22))
        suggester = new(memory, prompt)
        for end in range(1, len(answer) + 1):
            suggester.suggest(4, 4)
            suggester.learn([*prompt, *answer[:end]])
        suggester.finish([*prompt, *answer])
    right = 0
    for word in range(10, 22):
        prompt, answer = ask(word)
        suggester = new(memory, prompt)
        suggester.learn([*prompt, 3, 4])
        right += draft_tokens(suggester, 2)[:1] == [word + 100]
    assert right == 12


def test_a_lexicon_never_outgrows_its_bound() -> None:
    lexicon = Lexicon(most=50)
    for first in range(0, 1000, 100):
        lexicon.learn(range(first, first + 100), [5000 + first])
        assert len(lexicon) <= 50
    known = [asked for asked in range(1000) if lexicon.expected([asked])]
    assert len(known) == 50
    assert min(known) >= 900  # the newest


@pytest.mark.parametrize("seed", range(3))
def test_acceptance_probabilities_are_calibrated(seed: int, memory: AnyMemory) -> None:
    """Also for what was hardly seen before, where shares alone would be too high."""
    chooser = random.Random(seed)
    expected_accepted = kept = 0.0
    for number in range(200):
        tokens = [50]
        suggester = new(memory, tokens)
        while len(tokens) < 40:
            usual = (7 * tokens[-1] + 1) % 200
            tokens.append(usual if chooser.random() < 0.5 else chooser.randrange(200))
            made = suggester.suggest(3, 1)
            if number > 100:
                expected_accepted += suggester.expected()[made - 1] if made else 0.0
                kept += tokens[-1] in suggester.draft(made).tokens
            suggester.learn(tokens)
        suggester.finish(tokens)
    assert kept > 1000
    assert expected_accepted == pytest.approx(kept, rel=0.08)


def _text(chooser: random.Random, length: int) -> list[int]:
    """Repeats itself now and then, in a vocabulary that is sometimes small."""
    size = chooser.choice((3, 12, 400))
    tokens = [chooser.randrange(size) for _ in range(2)]
    while len(tokens) < length:
        at = chooser.randrange(len(tokens))
        tokens += tokens[at : at + chooser.randint(1, 9)]
        tokens += [chooser.randrange(size) for _ in range(chooser.randint(0, 3))]
    return tokens[:length]


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.name)
@pytest.mark.parametrize("seed", range(4))
def test_compiled_suggestions_are_the_same(seed: int, build: Library) -> None:
    """Token for token and probability for probability, whatever was asked and learned before."""
    chooser = random.Random(seed)
    ours, theirs = Memory(), compiled.Memory(build)
    trees = 0
    for _ in range(150):
        text = _text(chooser, chooser.randint(2, 300))
        begin = chooser.randint(1, len(text))
        how: dict[str, Any] = {
            "longest": chooser.randint(1, 8),
            "shortest": 1,
            "shared": chooser.random() < 0.8,
            "trees": chooser.random() < 0.8,
        }
        pair = [each.suggester(text[:begin], **how) for each in (ours, theirs)]
        at = begin
        while at < len(text):
            if chooser.random() < 0.7:
                count, limit = chooser.randint(-1, 40), chooser.randint(-1, 12)
                carried = text[at : at + chooser.randint(0, 5)] if chooser.random() < 0.4 else []
                worth = chooser.choice((0.02, 0.1, 0.4))
                made = {one.suggest(count, limit, carried, worth) for one in pair}
                assert len(made) == 1
                assert pair[0].expected() == pair[1].expected()
                size = chooser.randint(0, made.pop())
                drafts = [one.draft(size) for one in pair]
                assert drafts[0] == drafts[1]
                trees += drafts[0].parents is not None
            at += chooser.randint(1, 6)
            for one in pair:
                one.learn(text[:at])
                assert one.draft(0).tokens == []
        for one in pair:
            one.finish(text)
    assert trees > 100


@pytest.mark.parametrize("build", BUILDS[:1], ids=lambda build: build.name)
def test_compiled_suggestions_forget_the_same(build: Library) -> None:
    """More contexts, and more words of prompts, than are kept."""
    chooser = random.Random(9)
    ours, theirs = Memory(), compiled.Memory(build)
    for _ in range(130):
        prompt = [chooser.randrange(40_000) for _ in range(128)]
        answer = [token + 50_000 for token in prompt[:64]]
        answer += [chooser.randrange(20_000) for _ in range(150)]
        pair = [
            each.suggester(prompt, longest=8, shortest=1, shared=True) for each in (ours, theirs)
        ]
        for one in pair:
            one.finish([*prompt, *answer])
        pair = [
            each.suggester(prompt, longest=8, shortest=1, shared=True) for each in (ours, theirs)
        ]
        for token in chooser.sample(answer, 5):
            for one in pair:
                one.learn([*prompt, token])
            assert len({one.suggest(16, 16) for one in pair}) == 1
            assert pair[0].expected() == pair[1].expected()
            prompt.append(token)
    assert len(ours.followers) <= 50_000
