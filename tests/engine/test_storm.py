"""Requests come, go and are aborted at random in a pool far too small for them."""

import random
import time
from typing import Any

import pytest

from penstock import LLM, SamplingParams
from penstock.engine.build import build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.requests.input import Input
from tests.conftest import TinyModel

PROMPTS = 24


@pytest.mark.parametrize("seed", range(4))
def test_whoever_is_not_aborted_gets_the_whole_answer(seed: int, tiny_model: TinyModel) -> None:
    chooser = random.Random(seed)
    folder = str(tiny_model("llama"))
    shared = [chooser.randrange(256) for _ in range(20)]
    prompts = [
        shared[: chooser.randrange(21)]
        + [chooser.randrange(256) for _ in range(chooser.randrange(1, 30))]
        for _ in range(PROMPTS)
    ]
    params = [
        SamplingParams(
            max_tokens=chooser.randrange(1, 25),
            n=chooser.choice([1, 1, 2, 3]),
            seed=i,
            ignore_eos=True,
            presence_penalty=chooser.choice([0.0, 1.0]),
        )
        for i in range(PROMPTS)
    ]
    calm = LLM(folder, prefix_cache=False, kv_cache_memory=0.01)
    expected = [
        [choice.token_ids for choice in answer.outputs] for answer in calm.generate(prompts, params)
    ]

    size = calm.kv_cache_bytes_per_token * 16 * 9
    settings: dict[str, Any] = {"max_running": 6, "chunk_tokens": 9, "max_batch_tokens": 20}
    config = EngineConfig(model=folder, max_model_len=80, kv_cache_memory=size, **settings)
    built = build_engine(config, time.perf_counter)
    engine = built.engine
    answers: dict[str, dict[int, list[int]]] = {}
    aborted: set[str] = set()
    waiting = list(range(PROMPTS))
    while waiting or engine.has_work:
        if waiting and chooser.random() < 0.4:
            i = waiting.pop()
            engine.add(
                built.input_processor.prepare(
                    Input(
                        request_id=str(i),
                        prompt=prompts[i],
                        params=params[i],
                        priority=chooser.randrange(3),
                    )
                )
            )
            answers[str(i)] = {index: [] for index in range(params[i].n)}
        if answers and chooser.random() < 0.1:
            gone = chooser.choice(sorted(answers))
            engine.abort(gone)
            aborted.add(gone)
        for output in engine.step():
            answers[output.request_id][output.index] += output.token_ids
        held = {page for s in engine.scheduler.all() for page in s.table.pages}
        assert engine.pool.in_use == len(held)
    assert engine.stats().preemptions > 0
    for name, choices in answers.items():
        for index, tokens in choices.items():
            whole = expected[int(name)][index]
            assert tokens == (whole[: len(tokens)] if name in aborted else whole)
