"""`--kv-cache-dtype`: the text depends on it, and on nothing that shares the cache with it."""

import logging
from typing import Any

import pytest
import torch

from penstock import LLM, SamplingParams
from penstock.engine.model.cache_dtype import NAMED, cache_dtype, works
from penstock.engine.outputs.metrics import EngineCollector
from penstock.errors import ConfigurationError
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, run
from tests.engine.test_drafting import METHODS, jobs, tokens

KINDS = ["llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", NAMED)
def test_company_chunks_cached_prefixes_and_preemption_change_nothing(
    dtype: str, kind: str, tiny_model: TinyModel
) -> None:
    """Forks (n=2) and drafts are among the jobs."""
    folder = tiny_model(kind)
    roomy = build(folder, kv_cache_dtype=dtype, prefix_cache=False)
    alone = [run(roomy, [job])[0].tokens for job in jobs()]
    assert tokens(run(roomy, jobs())) == alone
    chunked = build(folder, kv_cache_dtype=dtype, prefix_cache=False, chunk_tokens=7)
    assert tokens(run(chunked, jobs())) == alone
    caching = build(folder, kv_cache_dtype=dtype, max_batch_tokens=512)
    for _ in range(2):
        assert tokens(run(caching, jobs())) == alone
    assert caching.engine.stats().prefix_hit_tokens > 0
    small = build(
        folder,
        kv_cache_dtype=dtype,
        max_model_len=96,
        kv_cache_memory=roomy.engine.bytes_per_token * 16 * 14,
        chunk_tokens=9,
    )
    for shift in (0, 3):
        mixed = [
            job.with_decoding(METHODS[(shift + 5 * i) % len(METHODS)])
            for i, job in enumerate(jobs())
        ]
        assert tokens(run(small, mixed)) == alone
    assert small.engine.stats().preemptions > 0
    assert small.engine.pool.in_use == 0


def nano_jobs() -> list[Job]:
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    prompts = [[2 + (i * i + 31 * j) % 2700 for j in range(30 + 17 * i)] for i in range(6)]
    return [Job(prompt=prompt, params=params) for prompt in prompts]


@pytest.mark.parametrize("dtype", ["int8", "fp8"])
def test_the_embedded_model_says_the_same_in_any_company(dtype: str) -> None:
    built = build(None, kv_cache_dtype=dtype)
    alone = [run(built, [job])[0].tokens for job in nano_jobs()]
    before = built.engine.stats().prefix_hit_tokens
    assert tokens(run(built, nano_jobs())) == alone, "their prefixes are cached now"
    assert built.engine.stats().prefix_hit_tokens > before
    fresh = build(None, kv_cache_dtype=dtype, prefix_cache=False)
    assert tokens(run(fresh, nano_jobs())) == alone
    small = build(
        None,
        kv_cache_dtype=dtype,
        chunk_tokens=11,
        max_model_len=256,
        kv_cache_memory=built.engine.bytes_per_token * 16 * 24,
    )
    assert tokens(run(small, nano_jobs())) == alone
    assert small.engine.stats().preemptions > 0


@pytest.mark.parametrize("dtype", ["auto", *NAMED])
def test_logprobs_are_off_by_what_the_dtype_costs(dtype: str, tiny_model: TinyModel) -> None:
    """A bound for each dtype, and none but `auto` is exact: the cache is really what it says."""
    prompt = [i * 37 % 256 for i in range(120)]
    params = SamplingParams(max_tokens=0, temperature=0, prompt_logprobs=0)

    def logprobs(**settings: Any) -> list[float]:
        llm = LLM(str(tiny_model("llama")), kv_cache_memory=0.01, chunk_tokens=16, **settings)
        (answer,) = llm.generate([prompt], params)
        assert answer.prompt_logprobs is not None
        places = zip(prompt, answer.prompt_logprobs, strict=True)
        return [at[token].logprob for token, at in places if at is not None]

    pairs = zip(logprobs(kv_cache_dtype=dtype), logprobs(), strict=True)
    errors = [abs(ours - exact) for ours, exact in pairs]
    bound = {"auto": 0.0, "bf16": 0.05, "fp8": 0.5, "int8": 0.1}[dtype]
    assert max(errors) <= bound
    assert (max(errors) == 0) == (dtype == "auto")


@pytest.mark.parametrize(("dtype", "least"), [("bf16", 2.0), ("fp8", 3.7), ("int8", 3.7)])
def test_the_same_bytes_hold_more_tokens(dtype: str, least: float) -> None:
    """Of heads of 64 elements, as the embedded model's are: 256 bytes in float32, 68 in int8."""
    plain = build(None, kv_cache_memory=2**24)
    quantised = build(None, kv_cache_memory=2**24, kv_cache_dtype=dtype)
    assert quantised.engine.pool.count >= least * plain.engine.pool.count
    for built in (plain, quantised):
        stats = built.engine.stats()
        unused = 2**24 - stats.pages_total * stats.page_bytes
        assert 0 <= unused < stats.page_bytes


def test_start_up_says_dtype_and_bytes(
    tiny_model: TinyModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    build(tiny_model("llama"), kv_cache_dtype="int8", kv_cache_memory=3 * 2**20)
    # 3 layers of 2 heads: 16 bytes and a scale each for key and value.
    assert "KV cache in int8: 13104 tokens, 240 bytes each, 2 MiB" in caplog.text


def test_metrics_count_bytes(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"), kv_cache_dtype="int8")
    collector = EngineCollector(built.engine.stats)

    def gauges() -> tuple[float, float]:
        values = {family.name: family.samples[0].value for family in collector.collect()}
        return values["penstock_kv_cache_bytes"], values["penstock_kv_cache_bytes_in_use"]

    seen: set[tuple[float, float]] = set()
    job = Job(prompt=[1, 2, 3], params=SamplingParams(max_tokens=5, ignore_eos=True))
    run(built, [job], after_step=lambda: seen.add(gauges()))
    total = built.engine.pool.count * 16 * 240
    assert seen == {(total, 16 * 240), (total, 0)}


def test_what_a_device_cannot_do_is_refused() -> None:
    nowhere = torch.device("meta")
    for name in NAMED:
        assert cache_dtype(name, torch.float32, CPU) == NAMED[name]
        with pytest.raises(ConfigurationError, match=f"--kv-cache-dtype is {name}, .* on meta"):
            cache_dtype(name, torch.float32, nowhere)
    assert not works(torch.int8, nowhere)
    assert cache_dtype("auto", torch.float16, nowhere) == torch.float16
