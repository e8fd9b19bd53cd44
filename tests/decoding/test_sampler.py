"""The sampler against a plain row-by-row reading of the rules."""

import math
import random
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from penstock.decoding.gumbel import row_keys
from penstock.decoding.pieces import Pieces
from penstock.decoding.rule_state import RuleState
from penstock.decoding.rules import Rules
from penstock.decoding.sampler import NOTHING, Sampler
from penstock.decoding.sampling import Sampling
from penstock.kernels.gumbel_argmax.reference import gumbel_noise

VOCAB = 40


PIECES = [bytes([97 + token % 5]) * (1 + token // 20) for token in range(VOCAB)]


@dataclass(kw_only=True)
class FakeRow:
    sampling: Sampling
    tokens: list[int] = field(default_factory=lambda: [1, 2, 3, 3, 5])
    prompt_length: int = 3
    rule_state: RuleState | None = None

    @property
    def answer_start(self) -> int:
        return self.prompt_length


def brute_force(logits: list[float], row: FakeRow) -> int:
    """One row, in Python floats, straight from the rules."""
    s, r = row.sampling, row.sampling.rules or Rules()
    out = list(logits)
    answer = row.tokens[row.prompt_length :]
    if r.allowed_token_ids is not None:
        out = [x if i in r.allowed_token_ids else -math.inf for i, x in enumerate(out)]
    if len(answer) < r.min_tokens:
        for token in r.suppressed_until_min:
            out[token] = -math.inf
    text = b"".join(PIECES[token] for token in row.tokens)
    for token, piece in enumerate(PIECES):
        longer = text + piece
        ends = range(len(text) + 1, len(longer) + 1)
        if any(longer[:end].endswith(word) for word in r.bad_words for end in ends):
            out[token] = -math.inf
    for token, bias in r.logit_bias:
        out[token] += bias
    for token in set(row.tokens):
        factor = r.repetition_penalty
        out[token] = out[token] / factor if out[token] > 0 else out[token] * factor
    for token in set(answer):
        out[token] -= r.frequency_penalty * answer.count(token) + r.presence_penalty
    if max(out) == -math.inf:
        return NOTHING
    if s.temperature < 1e-5:
        return out.index(max(out))
    out = [x / s.temperature for x in out]
    if s.min_p > 0:
        floor = max(out) + math.log(s.min_p)
        out = [x if x >= floor else -math.inf for x in out]
    if s.top_k:
        kth = sorted(out, reverse=True)[min(s.top_k, len(out)) - 1]
        out = [x if x >= kth else -math.inf for x in out]
    if s.top_p < 1:
        total = sum(math.exp(x) for x in out)
        reached, floor = 0.0, -math.inf
        for x in sorted(out, reverse=True):
            reached += math.exp(x) / total
            floor = x
            if reached >= s.top_p:
                break
        out = [x if x >= floor else -math.inf for x in out]
    seeds = np.array([s.seed & (2**64 - 1)], dtype=np.uint64)
    keys = row_keys(seeds, np.array([len(row.tokens)], dtype=np.uint64))
    noise = gumbel_noise(torch.from_numpy(keys), torch.arange(VOCAB, dtype=torch.int32))[0]
    noisy = [x + float(g) for x, g in zip(out, noise, strict=True)]
    return noisy.index(max(noisy))


def random_sampling(chooser: random.Random) -> Sampling:
    def maybe(value: float, neutral: float) -> float:
        return value if chooser.random() < 0.5 else neutral

    return Sampling(
        temperature=chooser.choice([0.0, 0.3, 1.0, 1.7]),
        top_k=chooser.choice([0, 1, 3, 10, 100]),
        top_p=maybe(chooser.uniform(0.05, 0.99), 1.0),
        min_p=maybe(chooser.uniform(0.01, 0.5), 0.0),
        rules=Rules(
            repetition_penalty=maybe(chooser.uniform(0.5, 2.0), 1.0),
            presence_penalty=maybe(chooser.uniform(-2, 2), 0.0),
            frequency_penalty=maybe(chooser.uniform(-2, 2), 0.0),
            logit_bias=chooser.choice([(), ((3, 4.0), (7, -100.0)), ((39, 2.5),)]),
            min_tokens=chooser.choice([0, 2, 3]),
            suppressed_until_min=(5, 9),
            bad_words=chooser.choice([(), (b"a",), (b"dab", b"aa", b"cce"), (b"b", b"c", b"dd")]),
            allowed_token_ids=chooser.choice([None, None, (2, 3, 8, 17, 39), (1, 6)]),
        ),
        seed=chooser.choice([0, 1, -5, 2**63 - 1]),
    )


def test_mixed_batches_equal_brute_force() -> None:
    chooser = random.Random(2)
    sampler = Sampler(pieces=Pieces(PIECES))
    for _ in range(150):
        rows = [
            FakeRow(
                sampling=random_sampling(chooser),
                tokens=[chooser.randrange(10) for _ in range(chooser.randrange(4, 12))],
                prompt_length=chooser.randrange(1, 5),
            )
            for _ in range(chooser.randrange(1, 9))
        ]
        logits = torch.randn(len(rows), VOCAB) * 3
        expected = [brute_force(logits[i].tolist(), row) for i, row in enumerate(rows)]
        assert sampler.sample(logits.clone(), rows).tolist() == expected


def test_a_row_is_the_same_in_any_batch() -> None:
    chooser = random.Random(5)
    rows = [FakeRow(sampling=random_sampling(chooser)) for _ in range(16)]
    logits = torch.randn(16, VOCAB) * 2
    pieces = Pieces(PIECES)
    together = Sampler(pieces=pieces).sample(logits.clone(), rows).tolist()
    for i, row in enumerate(rows):
        alone = Sampler(pieces=pieces).sample(logits[i : i + 1].clone(), [row])
        assert alone.tolist() == [together[i]]


@pytest.mark.parametrize("vocab", [1500, 5000])
@pytest.mark.parametrize("flatness", [0.01, 3.0], ids=["flat", "peaked"])
def test_top_p_among_more_tokens_than_it_first_looks_at(vocab: int, flatness: float) -> None:
    """Only kept tokens can be drawn: compare the kept set through many seeds and by its size."""
    logits = torch.randn(1, vocab) * flatness
    probabilities = logits[0].double().softmax(0)
    order = probabilities.argsort(descending=True)
    enough = int((probabilities[order].cumsum(0) < 0.9).sum()) + 1
    kept = set(order[:enough].tolist())
    base = Sampling(top_p=0.9)
    rows = [FakeRow(sampling=replace(base, seed=seed)) for seed in range(400)]
    drawn = set(Sampler().sample(logits.expand(400, -1).clone(), rows).tolist())
    assert drawn <= kept


def test_draws_follow_the_distribution() -> None:
    """Chi-square of 20,000 draws against softmax over 8 tokens; chance of failure below 10^-5."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -1.5, 0.2])
    count = 20_000
    rows = [FakeRow(sampling=Sampling(temperature=0.8, seed=seed)) for seed in range(count)]
    drawn = Sampler().sample(logits.expand(count, -1).clone(), rows)
    expected = (logits / 0.8).softmax(0) * count
    found = torch.bincount(drawn, minlength=8)
    assert float(((found - expected) ** 2 / expected).sum()) < 36


def test_ties_go_to_the_lowest_id() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [4, 9]] = 1.0
    assert Sampler().sample(logits, [FakeRow(sampling=Sampling(temperature=0))]).tolist() == [4]
