"""What keys are credited with by the engine: every query, once, however its prompt is cut."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penstock import SamplingParams
from penstock.engine.build import Built
from penstock.engine.state.request import TokenLogprobs
from penstock.engine.state.sequence import Sequence
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, run
from tests.engine.test_eviction import h2o, with_policy
from tests.tiny import save_tiny

PROMPT = [(7 * i) % 250 for i in range(100)]
NEW_TOKENS = 20


def run_watched(
    built: Built, watch: Callable[[Sequence], None], neighbours: int = 0, **policy: Any
) -> None:
    """Run `PROMPT`, and show its sequence after each step from the prompt's end to eviction."""
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
    prompts = [PROMPT, *([i, 5, 6] * 9 for i in range(neighbours))]

    def after_step() -> None:
        for sequence in built.engine.scheduler.running:
            if sequence.request.id != "0":
                continue
            eviction_state = sequence.eviction_state
            assert eviction_state is not None
            if eviction_state.length >= len(PROMPT) and not eviction_state.in_slots:
                watch(sequence)

    run(
        built,
        [Job(prompt=prompt, params=params) for prompt in prompts],
        change=with_policy(h2o(**policy)),
        after_step=after_step,
    )


def masses_of_prompt(built: Built, neighbours: int = 0, **policy: Any) -> Tensor:
    found: list[Tensor] = []
    everything = len(PROMPT) + NEW_TOKENS - 4

    def watch(sequence: Sequence) -> None:
        assert sequence.eviction_state is not None
        found.append(sequence.eviction_state.mass[..., : len(PROMPT)].clone())

    run_watched(built, watch, neighbours, heavy=everything, recent=1, **policy)
    return found[0]


@pytest.mark.parametrize("kv_heads", [1, 2, 8], ids=["group-8", "group-4", "group-1"])
def test_each_query_adds_its_group_and_no_more(kv_heads: int, tmp_path: Path) -> None:
    folder = save_tiny(
        "llama", tmp_path / "llama", num_attention_heads=8, num_key_value_heads=kv_heads, head_dim=8
    )
    group, seen = 8 / kv_heads, 0

    def watch(sequence: Sequence) -> None:
        nonlocal seen
        eviction_state = sequence.eviction_state
        assert eviction_state is not None
        sums = eviction_state.mass.sum(dim=-1)
        assert torch.allclose(sums, torch.full_like(sums, group * eviction_state.length), rtol=1e-5)
        seen += 1

    built = build(folder, prefix_cache=False, chunk_tokens=33)
    run_watched(built, watch, heavy=len(PROMPT) + NEW_TOKENS - 4, recent=1)
    assert seen > NEW_TOKENS - 4


@pytest.mark.parametrize("policy", [{}, {"score": "decay", "half_life": 30}, {"score_window": 40}])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_masses_do_not_depend_on_how_the_prompt_is_cut(
    kind: str, policy: dict[str, Any], tiny_model: TinyModel
) -> None:
    folder = tiny_model(kind)
    whole = masses_of_prompt(build(folder, prefix_cache=False), **policy)
    for chunk, neighbours in ((1, 0), (7, 2), (64, 3)):
        built = build(folder, prefix_cache=False, chunk_tokens=chunk)
        found = masses_of_prompt(built, neighbours, **policy)
        assert torch.allclose(found, whole, atol=1e-4), chunk


def test_counting_does_not_change_what_is_computed(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"), prefix_cache=False)
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
    everything = len(PROMPT) + NEW_TOKENS

    def run_with(kv_cache: Any) -> tuple[list[Tensor], list[TokenLogprobs]]:
        store = built.engine._store  # pyright: ignore[reportPrivateUsage]
        for cache in (*store.keys, *store.values):
            cache.zero_()
        job = Job(prompt=PROMPT, params=params, logprobs=3, kv_cache=kv_cache)
        (answer,) = run(built, [job])
        return [cache.clone() for cache in (*store.keys, *store.values)], answer.logprobs[0]

    plain_caches, plain = run_with(None)
    caches, logprobs = run_with({"h2o": {"heavy": everything - 2, "recent": 1}})
    assert logprobs == plain, "a budget that holds everything is the full cache"
    assert all(map(torch.equal, caches, plain_caches))
    # Two less, so that attention is counted until the last token: the same sums in another order.
    _, counted = run_with({"h2o": {"heavy": everything - 4, "recent": 1}})
    assert counted != plain
    for one, other in zip(counted[:-1], plain[:-1], strict=True):
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
