"""Dropped thoughts beside policies that evict, against a forward pass of one head at a time.

It is that of `test_eviction_oracle.py`. Compared are tokens, and what every head holds after every
step.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.engine.build import Built
from penstock.kvcache.eviction_state import EvictionState
from penstock.registry import Choice
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, run
from tests.engine.test_dropped_thoughts import DRAFTERS, END, OPENED, job, thought_of
from tests.engine.test_eviction import h2o, keynorm, tova, window, with_policy
from tests.engine.test_eviction_oracle import Held, NaiveLlama
from tests.tiny import save_tiny

RULES = {
    "h2o, 1": h2o(heavy=7, recent=5, sink=1, interval=1),
    "h2o, 4": h2o(heavy=7, recent=5, sink=1, interval=4),
    "h2o, no room before the thought ends": h2o(heavy=2, recent=5, sink=1, interval=3),
    "h2o, room until the answer": h2o(heavy=30, recent=10, sink=1, interval=1),
    "window": window(recent=10, sink=2, interval=1),
    "tova, 4": tova(keep=10, interval=4),
}
PROMPTS = [[5, 6, 7], list(range(40, 56)), [9, 8, 7, 9, 8, 7] * 5]


BIAS = 1.5


@torch.no_grad()
def naive(folder: Path, prompt: list[int], answer: list[int], choice: Choice[Any]) -> Any:
    """By how much each token's logit is below the largest, and what was held after each step."""
    llama = NaiveLlama(folder, choice, len(prompt), lambda row: row)
    for position, token in enumerate(prompt[:-1]):
        llama.next_logits(token, position)
    logits = llama.next_logits(prompt[-1], len(prompt) - 1)
    thought = thought_of(OPENED, prompt, answer)
    shortfalls: list[float] = []
    held: Held = []
    for position, token in enumerate(answer, start=len(prompt)):
        if thought and position == thought.stop + 1:
            llama.drop_thought(thought)
        llama.first_eviction(position)
        held.append(llama.held)
        logits[END] += BIAS
        shortfalls.append(float(logits.max() - logits[token]))
        if len(held) < len(answer):
            logits = llama.next_logits(token, position)
    return shortfalls, held[:-1]


def by_engine(built: Built, one: Job, choice: Choice[Any]) -> tuple[list[int], Held, int]:
    held: Held = []

    def note() -> None:
        for sequence in built.engine.scheduler.running:
            state, thought = sequence.eviction_state, sequence.thought
            assert state is not None
            assert thought is not None
            if state.positions is None:
                here = set(range(state.length))
                if thought.dropped and thought.first is not None and thought.end is not None:
                    here -= set(range(thought.first, thought.end))
                layers, heads, _ = state.mass.shape
                assert state.held == len(here) == state.mass.shape[2]
                held.append([[here] * heads] * layers)
                continue
            positions = state.positions[..., : state.held].tolist()
            held.append([[set(head) - {-1} for head in layer] for layer in positions])

    (found,) = run(built, [one], change=with_policy(choice), after_step=note)
    return found.tokens[0], held, found.usage.counters.evicted


@pytest.mark.parametrize("rule", RULES)
def test_text_and_held_keys_are_those_of_the_rule(rule: str, tmp_path: Path) -> None:
    folder = save_tiny(
        "llama", tmp_path / "llama", num_attention_heads=8, num_key_value_heads=2, head_dim=8
    )
    built, choice = build(folder), RULES[rule]
    dropped = 0
    for prompt in PROMPTS:
        one = job(temperature=0, max_tokens=50, logit_bias={str(END): BIAS}, prompt=prompt)
        answer, held, evicted = by_engine(built, one, choice)
        shortfalls, expected = naive(folder, prompt, answer, choice)
        assert held == expected
        assert max(shortfalls) <= 0
        thought = thought_of(OPENED, prompt, answer)
        dropped += bool(thought)
        least = min(len(head) for layer in held[-1] for head in layer)
        most = max(len(head) for layer in held[-1] for head in layer)
        last = len(prompt) + len(answer) - 2
        assert last - most <= evicted <= last + 1 - least
        together = run(
            built, [replace(one, decoding=each) for each in DRAFTERS], change=with_policy(choice)
        )
        assert [each.tokens for each in together] == [[answer]] * len(DRAFTERS)
    assert dropped


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_oss"])
@pytest.mark.parametrize("rule", ["h2o", "keynorm", "window"])
def test_enough_room_is_no_policy(kind: str, rule: str, tiny_model: TinyModel) -> None:
    """A policy that never has to evict leaves the thought to `drop_thinking`."""
    built = build(tiny_model(kind))
    choice = {
        "h2o": h2o(heavy=70, recent=9),
        "keynorm": keynorm(low=70, recent=9),
        "window": window(recent=79, sink=0),
    }[rule]
    for seed in (1, 2, 3):
        one = job(seed=seed)
        (plain,) = run(built, [one])
        assert END in plain.tokens[0]
        for each in DRAFTERS:
            (found,) = run(built, [replace(one, decoding=each)], change=with_policy(choice))
            assert found.tokens == plain.tokens


def test_the_comparison_notices_keys_that_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny("llama", tmp_path / "llama")

    def keep(self: EvictionState, begin: int, end: int) -> None:
        del self, begin, end

    monkeypatch.setattr(EvictionState, "drop", keep)
    choice, built = RULES["h2o, 1"], build(folder)
    prompt = PROMPTS[2]
    one = job(temperature=0, max_tokens=50, logit_bias={str(END): 3.0}, prompt=prompt)
    answer, held, _ = by_engine(built, one, choice)
    assert thought_of(OPENED, prompt, answer)
    assert naive(folder, prompt, answer, choice)[1] != held
