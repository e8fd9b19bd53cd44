"""Every method with adapters: as the same engine with peft's merged model."""

import asyncio
import time
from itertools import product
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from penstock import LLM, SamplingParams
from penstock.engine.async_engine import AsyncEngine
from penstock.engine.config import EngineConfig
from penstock.engine.requests.input import Input
from penstock.engine.transport.host import ThreadHost
from penstock.errors import NotFoundError
from tests.conftest import TinyModel
from tests.engine.jobs import Answer, build, run
from tests.engine.lora import GREEDY, Adapted, job, make_two

NAMES = (None, "a", "b")
PROMPTS = ([5 + 3 * i % 250 for i in range(230)], [9, 11, 9, 11, 9, 11, 9])
SAMPLED = SamplingParams(max_tokens=12, seed=7, ignore_eos=True)
LONGER = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
H2O = {"h2o": {"heavy": 6, "recent": 8, "sink": 2, "interval": 4}}
METHODS: dict[str, dict[str, Any]] = {
    "sampled": {"params": SAMPLED},
    "n=3": {"params": SAMPLED.model_copy(update={"n": 3})},
    "cfg": {"decoding": {"cfg": {"scale": 2.0, "negative_prompt": "no"}}},
    "jacobi": {"decoding": {"jacobi": {"shared": False}}},
    "jacobi, sampled": {"decoding": {"jacobi": {"shared": False}}, "params": SAMPLED},
    "ngram": {"decoding": {"ngram": {"shared": False}}},
    "lookahead": {"decoding": {"lookahead": {}}},
    "ngram and cfg": {"decoding": {"ngram": {"adaptive": False}, "cfg": {"scale": 1.5}}},
    "sparse prefill": {"decoding": {"sparse_prefill": {"min_tokens": 128, "recent": 64}}},
    "h2o": {"kv_cache": H2O, "params": LONGER},
    "window": {"kv_cache": {"window": {"recent": 10, "sink": 2}}, "params": LONGER},
    "h2o and jacobi": {"kv_cache": H2O, "decoding": {"jacobi": {"shared": False}}},
}
SEARCHES: dict[str, dict[str, Any]] = {
    "beam": {"beam": {"width": 3}},
    "best_of": {"best_of": {"n": 3}},
    "tot": {"tot": {"breadth": 2, "depth": 2, "thought_tokens": 6, "judge_tokens": 4}},
}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def made(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: TinyModel,
) -> Adapted:
    kind: str = request.param
    return make_two(kind, tiny_model(kind), tmp_path_factory.mktemp(kind))


def merged_answers(
    made: Adapted, fields: dict[str, Any], **settings: Any
) -> dict[str | None, list[Answer]]:
    """Of each prompt, by name, of engines without adapters."""
    jobs = [job(prompt, None, **fields) for prompt in PROMPTS]
    return {name: run(build(made.model(name), **settings), jobs) for name in NAMES}


def check(made: Adapted, fields: dict[str, Any], **settings: Any) -> None:
    """All prompts with all adapters in one engine."""
    wanted = merged_answers(made, fields, **settings)
    built = build(made.base, adapters=made.flags, **settings)
    asked = list(product(range(len(PROMPTS)), NAMES))
    found = run(built, [job(PROMPTS[i], name, **fields) for i, name in asked])
    assert [each.tokens for each in found] == [wanted[name][i].tokens for i, name in asked]
    # Else adapters that are left out would not be noticed.
    assert len({str([each.tokens for each in wanted[name]]) for name in NAMES}) == len(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_methods(method: str, made: Adapted) -> None:
    check(made, METHODS[method], chunk_tokens=48)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp8", "int8"])
def test_cache_dtypes(dtype: str, made: Adapted) -> None:
    check(made, {}, kv_cache_dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_searches(name: str, made: Adapted) -> None:
    params = SamplingParams(max_tokens=10, seed=3, temperature=0.7)
    adapted = LLM(str(made.base), adapters=made.flags, kv_cache_memory=0.01)
    answers: list[str] = []
    for adapter in NAMES:
        plain = LLM(str(made.model(adapter)), kv_cache_memory=0.01)
        ask: dict[str, Any] = {"decoding": SEARCHES[name], "use_tqdm": False}
        found = adapted.generate("Once upon", params, adapter=adapter, **ask)[0]
        wanted = plain.generate("Once upon", params, **ask)[0]
        assert found.error is None
        assert [x.token_ids for x in found.outputs] == [x.token_ids for x in wanted.outputs]
        answers.append(found.text)
    assert len(set(answers)) == len(NAMES)


def test_contexts_that_are_swapped_out_keep_their_adapter(made: Adapted) -> None:
    """Keys that were evicted cannot be computed again: they wait in memory."""
    fields = {"kv_cache": H2O, "params": LONGER}
    roomy = build(made.base, adapters=made.flags)
    small = build(
        made.base,
        adapters=made.flags,
        max_model_len=128,
        kv_cache_memory=roomy.engine.bytes_per_token * 16 * 16,
    )
    jobs = [job([i, 2, 3], "a", params=LONGER) for i in range(4)]
    jobs += [job([9, 8, i], name, **fields) for i in range(2) for name in NAMES]
    wanted = [run(roomy, [each])[0].tokens for each in jobs]
    assert [each.tokens for each in run(small, jobs)] == wanted
    assert small.engine.stats().preemptions > 0


def test_drafts_are_learnt_within_an_adapter_alone(made: Adapted) -> None:
    method = {"ngram": {"adaptive": False}}

    def drafted(*names: str | None) -> list[int]:
        """Steps that each took, which accepted drafts save."""
        built = build(made.base, adapters=made.flags)
        jobs = [job(PROMPTS[0][:9], name, decoding=method, params=SAMPLED) for name in names]
        return [run(built, [each])[0].usage.steps for each in jobs]

    fresh, again = drafted("a", "a")
    assert again < fresh
    assert drafted(None, "b", "a")[-1] == fresh


def engine(made: Adapted, **settings: Any) -> AsyncEngine:
    config = EngineConfig(
        model=str(made.base), kv_cache_memory=0.01, adapters=made.flags, **settings
    )
    return AsyncEngine.load(config, registry=CollectorRegistry(), clock=time.perf_counter)


def held(serving: AsyncEngine) -> set[str]:
    """Keys of the adapters that the engine has."""
    host = serving._host  # pyright: ignore[reportPrivateUsage]
    assert isinstance(host, ThreadHost)
    store = host._engine.adapters  # pyright: ignore[reportPrivateUsage]
    return set(store._known)  # pyright: ignore[reportPrivateUsage]


def test_a_search_ends_with_the_adapter_that_it_began_with(made: Adapted) -> None:
    """Unloaded before its first subrequest is made, and another one loaded under its name."""
    params = SamplingParams(max_tokens=10, seed=3, temperature=0.7)
    llm = LLM(str(made.merged["a"]), kv_cache_memory=0.01)
    wanted = llm.generate("Once upon", params, decoding=SEARCHES["beam"], use_tqdm=False)[0]
    serving = engine(made)

    async def body() -> None:
        serving.start()
        try:
            given = Input(
                request_id="one",
                prompt="Once upon",
                params=params,
                decoding=SEARCHES["beam"],
                adapter=serving.adapters["a"].key,
            )
            prepared = serving.input_processor.prepare(given)
            stream = serving.submit(prepared)
            serving.unload_adapter("a")
            await serving.load_adapter("a", made.folders["b"], created=1)
            assert held(serving) == {"a#0", "a#1", "b#0"}
            text = "".join([delta.text async for delta in stream])
            assert text == wanted.text
        finally:
            await serving.stop()

    asyncio.run(body())
    assert held(serving) == {"a#1", "b#0"}


def test_a_request_between_reading_and_submitting(made: Adapted) -> None:
    """Its adapter was unloaded: it ends; another one has the name now: that one answers."""
    llm = LLM(str(made.merged["b"]), kv_cache_memory=0.01)
    wanted = llm.generate("Once upon", GREEDY, use_tqdm=False)[0].text
    serving = engine(made)

    async def body() -> None:
        serving.start()
        try:
            key = serving.adapters["a"].key
            given = Input(request_id="one", prompt="Once upon", params=GREEDY, adapter=key)
            prepared = serving.input_processor.prepare(given)
            await serving.load_adapter("a", made.folders["b"], created=1, replace=True)
            text = "".join([delta.text async for delta in serving.submit(prepared)])
            assert text == wanted
            serving.unload_adapter("a")
            with pytest.raises(NotFoundError, match="the adapter a was unloaded"):
                serving.submit(prepared)
        finally:
            await serving.stop()

    asyncio.run(body())
    assert held(serving) == {"b#0"}
