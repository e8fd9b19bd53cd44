"""Same seed, same tokens: batch, chunking, cache and preemption never change the text."""

import random
from typing import Any

import pytest

from penstock import LLM, SamplingParams
from tests.conftest import TinyModel

NEW_TOKENS = 30


def prompts() -> list[list[int]]:
    chooser = random.Random(3)
    shared = [chooser.randrange(256) for _ in range(33)]
    return [
        *([chooser.randrange(256) for _ in range(n)] for n in (1, 9, 31, 50)),
        [*shared, 1],
        [*shared, 2, 3],
    ]


def params() -> list[SamplingParams]:
    base: dict[str, Any] = {"max_tokens": NEW_TOKENS, "ignore_eos": True}
    return [
        SamplingParams(**base, temperature=1.0, seed=1),
        SamplingParams(**base, temperature=0.7, top_p=0.9, seed=2),
        SamplingParams(**base, temperature=1.5, top_k=20, seed=3, frequency_penalty=0.5),
        SamplingParams(**base, temperature=0.9, min_p=0.02, seed=4, repetition_penalty=1.3),
        SamplingParams(**base, temperature=0, presence_penalty=1.0),
        SamplingParams(**base, temperature=1.0, seed=-6, logit_bias={"5": 3.0}, n=3),
    ]


def answers(llm: LLM) -> list[list[list[int]]]:
    out = llm.generate(prompts(), params())
    return [[choice.token_ids for choice in one.outputs] for one in out]


@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3_moe"])
def test_equals_a_batch_of_one(kind: str, tiny_model: TinyModel) -> None:
    folder = str(tiny_model(kind))
    alone = LLM(folder, prefix_cache=False, kv_cache_memory=0.01)
    expected = [
        [choice.token_ids for choice in alone.generate([prompt], one)[0].outputs]
        for prompt, one in zip(prompts(), params(), strict=True)
    ]
    assert answers(alone) == expected

    llm = LLM(folder, chunk_tokens=5, max_batch_tokens=64, kv_cache_memory=0.01)
    assert answers(llm) == expected
    assert answers(llm) == expected
    assert llm.stats().prefix_hit_tokens > 0

    size = llm.kv_cache_bytes_per_token * 16 * 11
    small = LLM(folder, max_model_len=96, kv_cache_memory=size)
    assert answers(small) == expected
    assert small.stats().preemptions > 0


def test_choices_differ_and_the_first_is_the_single_one(tiny_model: TinyModel) -> None:
    llm = LLM(str(tiny_model("llama")), kv_cache_memory=0.01)
    several = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=12, seed=9, n=4))[0]
    single = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=12, seed=9))[0]
    assert several.outputs[0].token_ids == single.outputs[0].token_ids
    assert len({tuple(choice.token_ids) for choice in several.outputs}) == 4
    assert several.usage.completion_tokens == 48
    assert several.usage.prompt_tokens == 3


def test_without_a_seed_runs_differ(tiny_model: TinyModel) -> None:
    llm = LLM(str(tiny_model("llama")), kv_cache_memory=0.01)
    out = llm.generate([[1, 2, 3]] * 4, SamplingParams(max_tokens=12))
    assert len({tuple(one.outputs[0].token_ids) for one in out}) == 4
