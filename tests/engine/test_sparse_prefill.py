"""Prompts whose rows see a part of their keys: against a naive model, beside everything else."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from penstock import SamplingParams
from penstock.decoding.sparse_prefill import SPARSE_PREFILL
from penstock.engine.build import Built
from penstock.errors import ConfigurationError, RequestError
from penstock.registry import Spec
from tests.conftest import TinyModel
from tests.engine.jobs import Answer, Job, build, prepare, run
from tests.engine.naive_sparse import FIRST, RECENT, naive
from tests.engine.searches import Run, search_request
from tests.tiny import GQA, save_tiny

QK: dict[str, Any] = {"method": "qk", "min_tokens": FIRST, "recent": RECENT, "keep": 0.1}
HASH: dict[str, Any] = {"method": "hash", "min_tokens": FIRST, "recent": RECENT, "buckets": 8}
SPECS = {"qk": QK, "hash": HASH}
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


def random_prompt(seed: int, length: int) -> list[int]:
    chooser = random.Random(seed)
    return [chooser.randrange(256) for _ in range(length)]


PROMPT = random_prompt(1, 300)


def job(spec: dict[str, Any] | None, prompt: list[int] = PROMPT, **fields: Any) -> Job:
    decoding = {**fields.pop("decoding", {}), **({} if spec is None else {"sparse_prefill": spec})}
    return Job(prompt=prompt, params=fields.pop("params", GREEDY), decoding=decoding, **fields)


def answer(built: Built, one: Job) -> Answer:
    (found,) = run(built, [one])
    return found


def _as_it_is(model: Any, quantization: str) -> Any:
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_equals_a_naive_model(
    name: str, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A rewritten model has the elements of its keys in another order: other buckets, as good.
    monkeypatch.setattr("penstock.engine.loading.loader.make_fused", _as_it_is)
    folder = tiny_model("llama")
    prompt = PROMPT[:170]
    found = answer(build(folder), job(SPECS[name], prompt))
    assert found.tokens == [naive(folder, SPECS[name], prompt, 12)]
    assert found.tokens != answer(build(folder), job(None, prompt)).tokens


@pytest.mark.parametrize("name", SPECS)
def test_neither_chunks_nor_company_nor_cache_change_the_text(
    name: str, tiny_model: TinyModel
) -> None:
    folder, spec = tiny_model("llama"), SPECS[name]
    seeded = SamplingParams(max_tokens=70, temperature=1.0, seed=5, n=2, ignore_eos=True)
    jobs = [
        job(spec),
        job(spec, [*PROMPT[:200], 7, 8]),
        job(None),
        job(spec, random_prompt(2, 250), params=seeded),
        job(None, [1, 2, 3]),
    ]
    alone = build(folder, prefix_cache=False)
    expected = [answer(alone, one).tokens for one in jobs]
    for chunk in (5, 33, None):
        built = build(folder, chunk_tokens=chunk, max_batch_tokens=64)
        assert [one.tokens for one in run(built, jobs)] == expected
        again = run(built, jobs)
        assert [one.tokens for one in again] == expected
        assert all(one.usage.cached_tokens > 0 for one in again[:4])


@pytest.mark.parametrize("name", SPECS)
def test_preemption_does_not_change_the_text(name: str, tiny_model: TinyModel) -> None:
    """What is computed again of an answer is exact again, though it is read like a prompt."""
    params = SamplingParams(max_tokens=100, temperature=0, ignore_eos=True)
    jobs = [job(SPECS[name], random_prompt(seed, 250), params=params) for seed in (2, 3)]
    built = build(tiny_model("llama"))
    expected = [answer(built, one).tokens for one in jobs]
    page = 16 * built.engine.bytes_per_token
    small = build(tiny_model("llama"), kv_cache_memory=40 * page, max_model_len=400)
    assert [one.tokens for one in run(small, jobs)] == expected
    assert small.engine.stats().preemptions > 0


@pytest.mark.parametrize("name", SPECS)
def test_short_prompts_are_exact(name: str, tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    short = PROMPT[:FIRST]
    found = answer(built, job(SPECS[name], short))
    assert found.tokens == answer(build(tiny_model("llama")), job(None, short)).tokens
    assert found.usage.counters.sparse_rows == 0
    # What is exact is shared with everybody.
    assert answer(built, job(None, short)).usage.cached_tokens == FIRST - 16


def test_pages_are_shared_with_equal_parameters_alone(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    cached = {
        "first": answer(built, job(QK)).usage.cached_tokens,
        "same": answer(built, job(QK)).usage.cached_tokens,
        "other": answer(built, job({**QK, "keep": 0.2})).usage.cached_tokens,
        "exact": answer(built, job(None)).usage.cached_tokens,
        "salted": run_salted(built, "x").usage.cached_tokens,
    }
    assert cached == {"first": 0, "same": 288, "other": 0, "exact": 0, "salted": 0}


def run_salted(built: Built, salt: str) -> Answer:
    (found,) = run(built, [job(QK)], change=lambda request: replace(request, cache_salt=salt))
    return found


def test_an_answer_is_read_again_where_it_is_part_of_a_prompt(tiny_model: TinyModel) -> None:
    """Its keys were exact, as those of an answer; as a prompt's they are not."""
    built = build(tiny_model("llama"))
    long = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    first = answer(built, job(QK, params=long))
    turn = [*PROMPT, *first.tokens[0], 5, 6]
    second = answer(built, job(QK, turn))
    assert second.usage.cached_tokens == 288
    assert second.tokens == answer(build(tiny_model("llama")), job(QK, turn)).tokens


def test_usage_counts_rows_and_pairs(tiny_model: TinyModel) -> None:
    layers, heads = 3, 4
    usage = answer(build(tiny_model("llama")), job(QK)).usage
    assert usage.counters.sparse_rows == 300 - FIRST
    rows = range(FIRST, 300)
    assert usage.counters.causal_pairs == layers * heads * sum(row + 1 for row in rows)
    # At least the newest and the sinks, at most those and 7 of each 64 before them.
    least = layers * heads * len(rows) * (RECENT + 4)
    most = least + layers * heads * sum(7 * ((row - RECENT + 1) // 64 + 1) for row in rows)
    assert least < usage.counters.seen_pairs <= most
    assert usage.counters.seen_pairs < 0.4 * usage.counters.causal_pairs


@pytest.mark.parametrize("name", SPECS)
def test_drafts_and_guidance_compose(name: str, tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"), prefix_cache=False)
    guidance = {"cfg": {"scale": 2.0, "negative_prompt": "".join(map(chr, range(40, 120))) * 2}}
    drafter = {"ngram": {"window": 4, "adaptive": False}}
    prompt = [*([65, 66, 67, 68] * 10), *PROMPT[:200]]
    spec = SPECS[name]
    plain = answer(built, job(spec, prompt))
    drafted = answer(built, job(spec, prompt, decoding=drafter))
    assert drafted.tokens == plain.tokens
    guided = answer(built, job(spec, prompt, decoding=guidance))
    assert guided.tokens != plain.tokens
    # Both prompts are long enough.
    assert guided.usage.counters.sparse_rows == 240 - FIRST + 160 - FIRST
    both = answer(built, job(spec, prompt, decoding={**guidance, **drafter}))
    assert both.tokens == guided.tokens
    assert both.usage.counters.drafted > 0


@pytest.mark.parametrize("guidance", [False, True], ids=["alone", "cfg"])
@pytest.mark.parametrize("name", SPECS)
def test_nothing_is_drafted_on_a_sparse_row(
    name: str, guidance: bool, tiny_model: TinyModel
) -> None:
    """The last row of a prompt, read alone, decodes; its draft tokens would not see every key."""
    negative = {"cfg": {"scale": 2.0, "negative_prompt": "".join(map(chr, range(33, 113))) * 2}}
    others: dict[str, Any] = negative if guidance else {}
    drafter = {"lookahead": {"window": 2, "ngram": 4, "candidates": 6, "adaptive": False}}
    spec = {**others, "sparse_prefill": SPECS[name]}
    built = build(tiny_model("llama"), prefix_cache=False, chunk_tokens=40)
    states: list[tuple[int, int]] = []

    def note() -> None:
        states.extend((s.computed, s.generated) for s in built.engine.scheduler.running)

    for seed in range(6):
        # So few different tokens that drafts are often accepted, on any path of the tree.
        params = SamplingParams(
            max_tokens=6, temperature=1.0, seed=seed, allowed_token_ids=[7, 8, 9], ignore_eos=True
        )
        prompt = random.Random(seed).choices([7, 8, 9], k=161)
        one = Job(prompt=prompt, params=params, decoding=spec, logprobs=0)
        plain = answer(built, one)
        (found,) = run(built, [one.with_decoding({**spec, **drafter})], after_step=note)
        assert found.tokens == plain.tokens
        assert found.usage.counters.drafted > 0
        likely = [each.logprob for each in found.logprobs[0]]
        assert likely == pytest.approx([each.logprob for each in plain.logprobs[0]], abs=1e-4)
    assert (160, 0) in states, "the last row was left to a step of its own"


class Reads(TorchDispatchMode):
    """Counts how often the host asks for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        asking = torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default
        self.count += function in asking
        return function(*args, **(kwargs or {}))


def test_pairs_are_read_once(tiny_model: TinyModel) -> None:
    """However many layers and chunks there were."""
    built = build(tiny_model("llama"), chunk_tokens=40)
    built.engine.add(prepare(built, "0", job(QK)))
    while not (running := built.engine.scheduler.running) or not running[0].generated:
        built.engine.step()
    reading = running[0].sparse_prefill
    built.engine.abort("0")
    assert reading is not None
    with Reads() as reads:
        rows, seen, causal = reading.counted()
    assert reads.count == 1
    assert rows == len(PROMPT) - FIRST
    assert 0 < seen < causal


def test_a_window_policy_evicts_what_was_read(tiny_model: TinyModel) -> None:
    policy = {"window": {"recent": 100, "sink": 4}}
    expected = answer(build(tiny_model("llama"), chunk_tokens=50), job(QK, kv_cache=policy))
    assert expected.usage.counters.evicted > 0
    assert expected.usage.counters.sparse_rows == 300 - FIRST
    found = answer(build(tiny_model("llama"), chunk_tokens=7), job(QK, kv_cache=policy))
    assert found.tokens == expected.tokens
    assert found.tokens != answer(build(tiny_model("llama")), job(None, kv_cache=policy)).tokens


@pytest.mark.parametrize("cache", ["int8", "fp8"])
def test_caches_in_8_bits(cache: str, tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    found = answer(build(folder, kv_cache_dtype=cache), job(QK))
    assert (
        found.tokens == answer(build(folder, kv_cache_dtype=cache, chunk_tokens=9), job(QK)).tokens
    )
    assert found.usage.counters.sparse_rows == 300 - FIRST


@pytest.mark.parametrize("settings", [{}, {"prefix_cache": False}], ids=["kept", "anew"])
def test_searches_read_prompts_so_and_answers_exactly(
    settings: dict[str, Any], tiny_model: TinyModel
) -> None:
    """A single beam continues token by token, as prompts: it is greedy decoding all the same."""
    built = build(tiny_model("llama"), **settings)
    greedy = answer(built, job(QK))
    decoding: Spec = {"beam": {"width": 1}, "sparse_prefill": QK}
    run = Run(built, search_request(built, PROMPT, decoding, max_tokens=12, ignore_eos=True))
    (found,) = run.finish()
    assert [list(found.token_ids)] == greedy.tokens
    assert run.search.usage.counters.sparse_rows > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_triton_gives_the_same_tokens(name: str, tiny_model: TinyModel) -> None:
    pytest.importorskip("triton")
    folder, spec = tiny_model("llama"), SPECS[name]
    short = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    jobs = [job(spec, PROMPT[:180], params=short), job(None, PROMPT[:20], params=short)]
    expected = [one.tokens for one in run(build(folder, attention_backend="torch"), jobs)]
    built = build(folder, attention_backend="triton", chunk_tokens=100)
    assert [one.tokens for one in run(built, jobs)] == expected


def test_layers_with_windows_are_exact(tmp_path: Path) -> None:
    """qwen2 with one full layer: that one alone sees a part."""
    windows = {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 100}
    folder = save_tiny("qwen2", tmp_path / "qwen2", {**GQA, **windows})
    usage = answer(build(folder), job(QK)).usage
    assert usage.counters.causal_pairs == 4 * sum(row + 1 for row in range(FIRST, 300))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("mistral", "all its layers have sliding windows"),
        ("gemma2", "its attention logits are capped"),
        ("gpt_oss", "its attention has sinks"),
    ],
)
def test_models_that_it_cannot_serve(kind: str, words: str, tiny_model: TinyModel) -> None:
    built = build(tiny_model(kind))
    with pytest.raises(RequestError, match=words) as error:
        prepare(built, "0", job(QK))
    assert error.value.param == "decoding.sparse_prefill"
    prepare(built, "0", job({"method": "off"}))
    with pytest.raises(ConfigurationError, match=f"--sparse-prefill qk .* {words}"):
        build(tiny_model(kind), sparse_prefill="qk")


def test_policies_that_count_attention_are_refused(tiny_model: TinyModel) -> None:
    with pytest.raises(RequestError, match="counts the attention that each key receives") as error:
        prepare(build(tiny_model("llama")), "0", job(QK, kv_cache="h2o"))
    assert error.value.code == "unsupported_combination"


@pytest.fixture
def default(tiny_model: TinyModel) -> Built:
    return build(
        tiny_model("llama"),
        sparse_prefill="qk",
        sparse_prefill_min_tokens=FIRST,
        sparse_prefill_recent=RECENT,
        sparse_prefill_keep=0.1,
    )


def named(built: Built, decoding: Spec, kv_cache: Spec = None) -> list[str]:
    one = Job(prompt=[1, 2], params=GREEDY, decoding=decoding, kv_cache=kv_cache)
    return sorted(c.method.name for c in prepare(built, "0", one).methods.chosen)


def test_the_server_s_default(default: Built, tiny_model: TinyModel) -> None:
    found = answer(default, job(None))
    assert found.tokens == answer(build(tiny_model("llama")), job(QK)).tokens
    assert named(default, None) == ["sparse_prefill"]
    assert named(default, "jacobi") == ["jacobi", "sparse_prefill"]
    # A request's own word counts, and what cannot be combined is read exactly.
    assert named(default, {"sparse_prefill": {"method": "off"}}) == []
    assert named(default, None, "h2o") == []
    exact = answer(default, job({"method": "off"}))
    assert exact.tokens == answer(build(tiny_model("llama")), job(None)).tokens
    with pytest.raises(ConfigurationError, match="buckets is 8, which is for the method hash"):
        build(tiny_model("llama"), sparse_prefill="qk", sparse_prefill_buckets=8)


def test_keys_that_are_too_uneven_are_read_exactly(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def nothing(parameters: object, layer: int, beginning_KPD: Tensor) -> None:
        asked.append(layer)
        assert beginning_KPD.shape[1] == FIRST

    monkeypatch.setattr(SPARSE_PREFILL, "labeller", nothing)
    found = answer(build(tiny_model("llama"), chunk_tokens=50), job(HASH))
    assert found.tokens == answer(build(tiny_model("llama")), job(None)).tokens
    assert found.usage.counters.seen_pairs == found.usage.counters.causal_pairs > 0
    assert asked == [0, 1, 2]
