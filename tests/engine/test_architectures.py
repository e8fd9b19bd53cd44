"""Greedy output equals transformers' `generate`, token for token, whatever the batch does."""

import random

import pytest

from penstock import LLM, SamplingParams
from tests.conftest import TinyModel
from tests.engine.reference import greedy
from tests.tiny import ARCHITECTURES

NEW_TOKENS = 24
LENGTHS = (1, 5, 16, 17, 40, 63)


def prompts() -> list[list[int]]:
    chooser = random.Random(7)
    shared = [chooser.randrange(256) for _ in range(35)]
    several = [[chooser.randrange(256) for _ in range(n)] for n in LENGTHS]
    return [*several, [*shared, 1, 2], [*shared, 3]]


def answers(llm: LLM) -> list[list[int]]:
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
    return [out.outputs[0].token_ids for out in llm.generate(prompts(), params)]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_equals_generate(kind: str, tiny_model: TinyModel) -> None:
    folder = tiny_model(kind)
    expected = greedy(folder, prompts(), NEW_TOKENS)

    # Chunks of 7 split the prompts anywhere; the second round hits the prefix cache.
    llm = LLM(str(folder), chunk_tokens=7, max_batch_tokens=64, kv_cache_memory=0.05)
    assert answers(llm) == expected
    assert answers(llm) == expected
    assert llm.stats().prefix_hit_tokens > 0

    # A pool that cannot hold them all: sequences are preempted and computed again.
    bytes_per_token = llm.kv_cache_bytes_per_token
    small = LLM(str(folder), max_model_len=96, kv_cache_memory=bytes_per_token * 16 * 12)
    assert answers(small) == expected
    assert small.stats().preemptions > 0
