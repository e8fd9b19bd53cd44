"""`keynorm` and `tova`, which score keys in their own files: what stays is what their rule says.

No token comes twice in these texts: keys of one token differ in the first layer by their rotation
alone, so their norms would be equal but for rounding.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock import SamplingParams
from penstock.decoding.constraint.masks import Masks
from penstock.decoding.sampler import Drawn, Sampler
from penstock.decoding.sampling import Row
from penstock.engine.build import Built
from penstock.engine.model import runner
from penstock.registry import Choice, Spec
from tests.conftest import TinyModel
from tests.engine.jobs import Answer, Job, build, run
from tests.engine.test_eviction import keynorm, tokens, tova, with_policy
from tests.engine.test_eviction_oracle import naive
from tests.tiny import save_tiny

NEW_TOKENS = 26
Held = dict[tuple[int, int], list[list[set[int]]]]
"""By choice and tokens so far, the positions held by layer and head."""


class Scripted(Sampler):
    """Chooses tokens by a row's seed and position; none of them comes twice, nor in the prompt."""

    def draw(self, logits: Tensor, rows: Sequence[Row], masks: Masks | None = None) -> Drawn:
        chosen = [answer(row)[len(row.tokens) - row.prompt_length] for row in rows]
        return Drawn(ids=torch.tensor(chosen), logits=logits, limited=[], largest=None)


def answer(row: Row) -> list[int]:
    left = set(range(3, 250)) - set(row.tokens[: row.prompt_length])
    return Random(row.sampling.seed).sample(sorted(left), 2 * NEW_TOKENS)


def scripted(folder: Path, **settings: Any) -> Built:
    built = build(folder, **settings)
    built.engine.decoder.sampler = Scripted()
    return built


def prompt_of(seed: int, length: int) -> list[int]:
    return Random(seed).sample(range(3, 250), length)


def run_watched(built: Built, job: Job, choice: Choice[Any]) -> tuple[Answer, Held]:
    held: Held = {}

    def note() -> None:
        for sequence in built.engine.scheduler.running:
            state = sequence.eviction_state
            assert state is not None
            if state.length < len(job.prompt):
                continue
            if state.positions is None:
                layers, heads, _ = state.mass.shape
                found = [[set(range(state.length))] * heads] * layers
            else:
                positions = state.positions[..., : state.held].tolist()
                found = [[set(head) for head in layer] for layer in positions]
                assert all(len(head) == state.held for layer in found for head in layer)
            held[sequence.index, state.length] = found

    (answered,) = run(built, [job], change=with_policy(choice), after_step=note)
    return answered, held


def check(folder: Path, job: Job, choice: Choice[Any], answered: Answer, held: Held) -> None:
    lengths = dict.fromkeys(range(len(answered.tokens)), 0)
    for index, given in enumerate(answered.tokens):
        assert len(set(job.prompt + given)) == len(job.prompt) + NEW_TOKENS
        _, expected = naive(folder, job.prompt, given, choice)
        for behind, by_rule in enumerate(expected):
            found = held.get((index, len(job.prompt) + behind), by_rule)
            lengths[index] += (index, len(job.prompt) + behind) in held
            assert found == by_rule, (index, behind)
    assert sum(lengths.values()) == len(held)


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True, **fields)


RULES = {
    "keynorm, 1": keynorm(low=8, recent=3, interval=1),
    "keynorm, 5": keynorm(low=6, recent=6, interval=5),
    "keynorm, shares": keynorm(low=0.2, recent=0.1, interval=3),
    "tova, 1": tova(keep=11, interval=1),
    "tova, 5": tova(keep=0.4, interval=5),
}
every_rule = pytest.mark.parametrize("rule", RULES)


@every_rule
@pytest.mark.parametrize("kv_heads", [1, 2, 4], ids=["group-4", "group-2", "group-1"])
def test_what_is_held_is_what_the_rule_says(rule: str, kv_heads: int, tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "m", num_key_value_heads=kv_heads, num_hidden_layers=2)
    built, choice = scripted(folder, chunk_tokens=13), RULES[rule]
    for seed, length in enumerate((4, 12, 19, 41)):
        job = Job(prompt=prompt_of(seed, length), params=params(seed=seed))
        answered, held = run_watched(built, job, choice)
        assert len(held) == NEW_TOKENS - 1
        check(folder, job, choice, answered, held)


@every_rule
@pytest.mark.parametrize("length", [7, 30])
def test_choices_that_fork_evict_for_themselves(
    rule: str, length: int, tiny_model: TinyModel
) -> None:
    folder, choice = tiny_model("llama"), RULES[rule]
    job = Job(prompt=prompt_of(length, length), params=params(seed=length, n=3))
    answered, held = run_watched(scripted(folder), job, choice)
    assert {index for index, _ in held} == {0, 1, 2}
    assert len({tuple(given) for given in answered.tokens}) == 3
    check(folder, job, choice, answered, held)


@every_rule
@pytest.mark.parametrize("length", [7, 30])
def test_accepted_draft_tokens_count_as_read_one_by_one(
    rule: str, length: int, tiny_model: TinyModel
) -> None:
    """What the script chooses depends on the position alone, so Jacobi's drafts come true."""
    folder, choice = tiny_model("llama"), RULES[rule]
    drafting: Spec = {"jacobi": {"window": 6, "init": "pad", "adaptive": False}}
    job = Job(prompt=prompt_of(length, length), params=params(seed=length), decoding=drafting)
    answered, held = run_watched(scripted(folder), job, choice)
    # In slots a draft ends where the next eviction is due: at an interval of 1 there is none.
    if "1" not in rule:
        assert answered.usage.counters.accepted > NEW_TOKENS // 4
        assert len(held) < NEW_TOKENS - 1
    check(folder, job, choice, answered, held)


def test_prompt_lookup_with_tova(tiny_model: TinyModel) -> None:
    folder, choice = tiny_model("llama"), tova(keep=20, interval=6)
    job = Job(prompt=[9, 8, 7, 4] * 9, params=params(temperature=0), decoding="ngram")
    answered, held = run_watched(build(folder), job, choice)
    shortfalls, expected = naive(folder, job.prompt, answered.tokens[0], choice)
    assert answered.usage.counters.accepted > 0
    assert max(shortfalls) == 0
    for (_, length), found in held.items():
        assert found == expected[length - len(job.prompt)]


@pytest.mark.parametrize(
    ("choice", "computed"), [(keynorm(), 1), (tova(), 1)], ids=["keynorm", "tova"]
)
def test_prefixes_come_from_the_cache(
    choice: Choice[Any], computed: int, tiny_model: TinyModel
) -> None:
    folder = tiny_model("llama")
    job = Job(prompt=prompt_of(5, 64 + computed), params=params(temperature=0))
    expected = tokens(run(build(folder, prefix_cache=False), [job], change=with_policy(choice)))
    built = build(folder)
    run(built, [job])
    (cached,) = run(built, [job], change=with_policy(choice))
    assert [cached.tokens] == expected
    assert cached.usage.cached_tokens == 64
    assert cached.usage.counters.evicted > 0


def test_what_observes_nothing_needs_no_scored_attention(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(tiny_model("llama"), prefix_cache=False)
    job = Job(prompt=prompt_of(6, 50), params=params(temperature=0))
    (expected,) = run(built, [job], change=with_policy(keynorm()))

    def refuse(*args: Any, **how: Any) -> None:
        raise AssertionError("attention is recorded")

    monkeypatch.setattr(runner, "ScoredRows", refuse)
    kernels = replace(built.engine.runner.kernels, scored_attention=refuse)
    monkeypatch.setattr(built.engine.runner, "kernels", kernels)
    (found,) = run(built, [job], change=with_policy(keynorm()))
    assert found.tokens == expected.tokens
    assert found.usage.counters.evicted > 0


@pytest.mark.parametrize(("kind", "all_seen"), [("mistral", True), ("llama", False)])
def test_keys_beyond_a_model_s_own_window_go_first(
    kind: str, all_seen: bool, tiny_model: TinyModel
) -> None:
    """A window of 24 tokens, in all layers of mistral, and 30 keys kept."""
    job = Job(prompt=prompt_of(9, 60), params=params(seed=9))
    choice = keynorm(low=26, recent=4, interval=1)
    _, held = run_watched(scripted(tiny_model(kind)), job, choice)
    assert all_seen == all(
        head >= set(range(length - 23, length))
        for (_, length), layers in held.items()
        for layer in layers
        for head in layer
    )


def test_heads_of_a_layer_hold_the_same_under_tova_and_others_under_keynorm(
    tiny_model: TinyModel,
) -> None:
    built = scripted(tiny_model("llama"))
    job = Job(prompt=prompt_of(8, 40), params=params(seed=8))
    for choice, alike in ((tova(keep=15), True), (keynorm(low=10, recent=5), False)):
        _, held = run_watched(built, job, choice)
        last = held[max(held)]
        assert all(layer[0] == head for layer in last for head in layer) == alike
        assert last[0] != last[1]
