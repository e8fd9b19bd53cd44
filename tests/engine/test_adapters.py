"""Adapters beside one model: each request's tokens are those of peft's merged model."""

import gc
import weakref
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

from penstock import LLM, SamplingParams
from penstock.engine.adapters.store import Prepared, start_key
from penstock.engine.model.fused.compiled import CompiledDecoder
from penstock.errors import ConfigurationError, NotFoundError
from penstock.kernels.linear.low_rank import PackedAdapter
from tests.conftest import TinyModel
from tests.engine.jobs import build, prepare, run
from tests.engine.lora import GREEDY, Adapted, MakeAdapted, job, make_adapter, make_two
from tests.engine.reference import greedy
from tests.engine.test_cuda_graphs import Counting, on_triton, with_graphs
from tests.tiny import save_tiny

COMPILED = ("llama", "qwen3", "phi3")
OTHERS = ("gpt2", "gemma2", "mixtral", "opt")
NAMES = (None, "a", "b")
LONG = [5 + 3 * i % 250 for i in range(70)]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, tiny_model: TinyModel) -> MakeAdapted:
    made: dict[str, Adapted] = {}

    def get(kind: str) -> Adapted:
        if kind not in made:
            made[kind] = make_two(kind, tiny_model(kind), tmp_path_factory.mktemp(kind))
        return made[kind]

    return get


@pytest.fixture(scope="module")
def llama(adapted: MakeAdapted) -> Adapted:
    return adapted("llama")


def expected(made: Adapted, given: list[list[int]]) -> list[list[int]]:
    """Of each prompt with each of `NAMES`, by prompt."""
    of_name = [greedy(made.model(name), given, 12) for name in NAMES]
    assert all(x != y for x, y in combinations(of_name, 2)), "they would not differ"
    return [answer for answers in zip(*of_name, strict=True) for answer in answers]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*COMPILED, *OTHERS])
def test_together_each_has_the_tokens_of_its_merged_model(kind: str, adapted: MakeAdapted) -> None:
    """Two adapters and none in the same steps; chunks that end anywhere; prefix cache hits."""
    made, given = adapted(kind), [LONG[:23], [9, 8, 7], LONG[3:50]]
    jobs = [job(prompt, name) for prompt, name in product(given, NAMES)]
    wanted = expected(made, given)
    for chunk in (7, 64):
        built = build(made.base, adapters=made.flags, chunk_tokens=chunk, max_batch_tokens=64)
        assert isinstance(built.loaded.model, CompiledDecoder) == (kind in COMPILED)
        for _ in range(2):
            assert [each.tokens[0] for each in run(built, jobs)] == wanted
        assert built.engine.stats().prefix_hit_tokens > 0


def test_what_is_cached_is_shared_within_an_adapter_alone(llama: Adapted) -> None:
    built = build(llama.base, adapters=llama.flags)
    cached = [run(built, [job(LONG, name)])[0].usage.cached_tokens for name in (*NAMES, *NAMES)]
    assert cached == [0, 0, 0, 64, 64, 64]


def test_nobody_waits_for_the_same_prompt_of_another_adapter(llama: Adapted) -> None:
    """Submitted together, those of one adapter read a prompt once; others read their own."""
    built = build(llama.base, adapters=llama.flags, chunk_tokens=16)
    answers = run(built, [job(LONG, name) for name in ("a", "b", "a", None)])
    assert [each.usage.cached_tokens > 0 for each in answers] == [False, False, True, False]
    assert [each.tokens for each in answers[:3]] == [
        [greedy(llama.merged[name], [LONG], 12)[0]] for name in ("a", "b", "a")
    ]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_preempted_sequences_come_back_with_their_adapter(kind: str, adapted: MakeAdapted) -> None:
    made, given = adapted(kind), [LONG[:30], LONG[3:32], LONG[7:35]]
    jobs = [job(prompt, name) for prompt, name in product(given, NAMES)]
    per_token = build(made.base).engine.bytes_per_token
    small = build(
        made.base, adapters=made.flags, max_model_len=96, kv_cache_memory=per_token * 16 * 12
    )
    assert [each.tokens[0] for each in run(small, jobs)] == expected(made, given)
    assert small.engine.stats().preemptions > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True, "r": 9},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 21}},
        {"alpha_pattern": {"v_proj": 3, "^model.layers.0.self_attn.o_proj": 40}},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["up_proj"], "layers_to_transform": [1]},
        {"target_modules": ["down_proj", "k_proj"], "r": 70},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["lm_head"], "r": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_what_a_configuration_may_say(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """`lm_head`: the head sees the wanted rows alone, here of prompts that end in several steps."""
    base = save_tiny(kind, tmp_path / "base", tie_word_embeddings=False)
    folder, merged = make_adapter(base, tmp_path / "made", 3, **settings)
    given = [LONG[:9], [9, 8, 7], LONG[3:50]]
    plain, wanted = greedy(base, given, 12), greedy(merged, given, 12)
    assert plain != wanted
    built = build(base, adapters=[f"a={folder}"], chunk_tokens=16)
    jobs = [job(prompt, name) for prompt in given for name in ("a", None)]
    answers = [each.tokens[0] for each in run(built, jobs)]
    assert answers == [each for pair in zip(wanted, plain, strict=True) for each in pair]


def test_logprobs_are_those_of_the_merged_model(llama: Adapted) -> None:
    params = SamplingParams(
        max_tokens=6, temperature=0, ignore_eos=True, logprobs=3, prompt_logprobs=2
    )
    for name in ("a", "b"):
        llm = LLM(str(llama.base), adapters=llama.flags, kv_cache_memory=0.01)
        merged = LLM(str(llama.merged[name]), kv_cache_memory=0.01)
        found = llm.generate([LONG], params, adapter=name, use_tqdm=False)[0]
        wanted = merged.generate([LONG], params, use_tqdm=False)[0]
        assert found.prompt_logprobs is not None
        assert wanted.prompt_logprobs is not None
        assert found.outputs[0].logprobs is not None
        assert wanted.outputs[0].logprobs is not None
        pairs = zip(
            [*found.prompt_logprobs[1:], *found.outputs[0].logprobs],
            [*wanted.prompt_logprobs[1:], *wanted.outputs[0].logprobs],
            strict=True,
        )
        for ours, theirs in pairs:
            assert ours is not None
            assert theirs is not None
            assert ours.keys() == theirs.keys()
            for token, entry in ours.items():
                assert entry.logprob == pytest.approx(theirs[token].logprob, abs=1e-4)


@pytest.mark.parametrize("settings", [{"quantization": "int8"}, {"quantization": "int4"}], ids=str)
def test_over_quantised_weights_company_changes_no_bit(
    settings: dict[str, Any], llama: Adapted
) -> None:
    jobs = [job(LONG[:30], name, logprobs=2) for name in NAMES]
    built = build(llama.base, adapters=llama.flags, **settings)
    together = run(built, jobs)
    for each, wanted in zip(jobs, together, strict=True):
        alone = run(build(llama.base, adapters=llama.flags, **settings), [each])[0]
        assert (alone.tokens, alone.logprobs) == (wanted.tokens, wanted.logprobs)
    plain = run(build(llama.base, **settings), jobs[:1])[0]
    assert (plain.tokens, plain.logprobs) == (together[0].tokens, together[0].logprobs)
    assert len({tuple(each.tokens[0]) for each in together}) == len(NAMES)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_deterministic_whatever_the_company(kind: str, adapted: MakeAdapted) -> None:
    made = adapted(kind)
    jobs = [job(LONG[:30], name, logprobs=0) for name in NAMES]
    together = run(build(made.base, adapters=made.flags, deterministic=True), jobs)
    for each, wanted in zip(jobs, together, strict=True):
        alone = run(build(made.base, adapters=made.flags, deterministic=True), [each])[0]
        assert alone.logprobs == wanted.logprobs


@pytest.mark.parametrize("threads", [1, 3])
def test_long_prompts_with_several_threads(threads: int, llama: Adapted) -> None:
    given = [[5 + 7 * i % 290 for i in range(300)]]
    built = build(llama.base, adapters=llama.flags, threads=threads, max_batch_tokens=1024)
    jobs = [job(prompt, name) for prompt, name in product(given, NAMES)]
    assert [each.tokens[0] for each in run(built, jobs)] == expected(llama, given)


def test_steps_in_graphs_are_those_without_adapters(llama: Adapted) -> None:
    """Neither a graph nor a step that is launched ahead of its tokens has an adapter's share."""
    given = [[9, 8, 7], LONG[:12]]
    built = on_triton(llama.base, adapters=llama.flags)
    executor = Counting()
    with_graphs(built, executor)
    for name in NAMES:
        before = executor.replays
        answers = run(built, [job(prompt, name) for prompt in given])
        assert [each.tokens[0] for each in answers] == greedy(llama.model(name), given, 12)
        assert (executor.replays > before) == (name is None)
    mixed = run(built, [job([9, 8, 7], "a"), job(LONG[:12], None)])
    assert mixed[0].tokens[0] == greedy(llama.merged["a"], given[:1], 12)[0]
    assert mixed[1].tokens[0] == greedy(llama.base, given[1:], 12)[0]


def layers_of(prepared: Prepared) -> list[Any]:
    """What holds an adapter's matrices, by layer."""
    if isinstance(prepared, PackedAdapter):
        return list(prepared._kept)  # pyright: ignore[reportPrivateUsage]
    return [layer for pair in prepared.pairs.values() for layer in pair]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_dropped_adapter_lives_as_long_as_its_requests(kind: str, adapted: MakeAdapted) -> None:
    made = adapted(kind)
    built = build(made.base, adapters=made.flags)
    adapters, key = built.engine.adapters, start_key("a")
    held = weakref.ref(layers_of(adapters.get(key))[0])
    built.engine.add(prepare(built, "one", job(LONG, "a")))
    tokens: list[int] = []
    while built.engine.has_work:
        for output in built.engine.step():
            tokens += output.token_ids
        if len(tokens) == 3:
            adapters.drop(key)
            assert held() is not None
    assert tokens == greedy(made.merged["a"], [LONG], 12)[0]
    gc.collect()
    assert held() is None
    with pytest.raises(LookupError):
        adapters.get(key)


def test_refusals(llama: Adapted, tiny_model: TinyModel, tmp_path: Path) -> None:
    llm = LLM(str(llama.base), adapters=llama.flags, kv_cache_memory=0.01)
    with pytest.raises(NotFoundError, match="there is no adapter 'c'"):
        llm.generate([LONG], GREEDY, adapter="c")
    with pytest.raises(ConfigurationError, match=r"the model has no linear layer model\.layers\.0"):
        build(tiny_model("gpt2"), adapters=llama.flags)
    narrow = save_tiny("llama", tmp_path, intermediate_size=80)
    with pytest.raises(ConfigurationError, match=r"mlp\.\w+_proj is for a layer of .* inputs and"):
        build(narrow, adapters=llama.flags)
    built = build(llama.base)
    with pytest.raises(ConfigurationError, match="takes no adapters"):
        built.engine.adapters.load("a#1", llama.folders["a"])


def test_settings(llama: Adapted) -> None:
    with pytest.raises(ValueError, match="names 'a' twice"):
        build(llama.base, adapters=["a=x", "a=y"])
    with pytest.raises(ValueError, match="adapters has 2, and max_adapters is 1"):
        build(llama.base, adapters=llama.flags, max_adapters=1)
    for wrong in ("a", "=x", "a=", "../a=x", "a b=x", "a:b=x", "a\n=x"):
        with pytest.raises(ValueError, match="adapters"):
            build(llama.base, adapters=[wrong])
