"""Memory of requests that evict: what one holds, what others get, and how long it may be."""

from pathlib import Path
from typing import Any

import pytest

from penstock import SamplingParams
from penstock.engine.build import Built
from penstock.engine.requests.input import Input
from penstock.errors import ContextLengthError
from penstock.kvcache.slot_table import SlotTable
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, prepare, run
from tests.engine.test_eviction import h2o, unchanged, with_policy
from tests.tiny import save_tiny

PAGE = 16
CONTEXT = 20_480
POOL_TOKENS = 1024


@pytest.fixture
def small_pool(tmp_path: Path) -> Built:
    """A long context and a pool of 1,024 tokens."""
    folder = save_tiny(
        "llama",
        tmp_path / "llama",
        num_hidden_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
    )
    bytes_per_token = 2 * 16 * 4
    return build(folder, kv_cache_memory=POOL_TOKENS * bytes_per_token)


def params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kv_cache", "new_tokens", "pages"),
    [
        ({"h2o": {"heavy": 64, "recent": 64, "interval": 16}}, 20_000, 9),
        ({"window": {"recent": 200, "interval": 8}}, 3_000, 14),
    ],
    ids=["h2o", "window"],
)
def test_an_answer_far_longer_than_the_pool_takes_constant_memory(
    kv_cache: Any, new_tokens: int, pages: int, small_pool: Built
) -> None:
    engine = small_pool.engine
    assert engine.pool.count * PAGE == POOL_TOKENS
    job = Job(prompt=[i % 250 for i in range(300)], params=params(new_tokens), kv_cache=kv_cache)
    retention = prepare(small_pool, "r", job).retention
    assert retention is not None
    assert pages == -(-retention.slots // PAGE)
    held: list[int] = []

    def after_step() -> None:
        held.append(engine.pool.in_use)
        for sequence in engine.scheduler.running:
            eviction_state = sequence.eviction_state
            assert eviction_state is not None
            if eviction_state.positions is None or eviction_state.length % 97:
                continue
            for positions in (
                eviction_state.positions[..., : eviction_state.held].flatten(0, 1).tolist()
            ):
                kept = set(positions)
                assert len(kept) == eviction_state.held, "no position twice"
                assert (
                    set(range(eviction_state.length - retention.recent, eviction_state.length))
                    <= kept
                )
                assert set(range(retention.sink)) <= kept

    (answer,) = run(small_pool, [job], after_step=after_step)
    assert len(answer.tokens[0]) == new_tokens
    after_prompt = held[-new_tokens:]
    assert set(after_prompt[:-1]) == {pages}
    assert after_prompt[-1] == 0
    assert answer.usage.counters.held_slots == retention.slots
    # Told a step late, and the last token is never read.
    evicted = 300 + new_tokens - 2 - retention.slots
    assert abs(answer.usage.counters.evicted - evicted) <= retention.interval


def test_what_evicts_is_limited_by_positions_and_the_rest_by_the_pool(small_pool: Built) -> None:
    input_processor, prompt = small_pool.input_processor, [5, 6, 7]

    def longest(kv_cache: Any) -> int:
        fields: dict[str, Any] = {"request_id": "r", "prompt": prompt, "kv_cache": kv_cache}
        default = SamplingParams(temperature=0)
        found = input_processor.prepare(Input(params=default, **fields)).max_tokens
        with pytest.raises(ContextLengthError):
            input_processor.prepare(Input(params=params(found + 1), **fields))
        assert input_processor.prepare(Input(params=params(found), **fields)).max_tokens == found
        return found

    assert longest(None) == POOL_TOKENS - len(prompt)
    assert longest({"h2o": {"heavy": 64, "recent": 64}}) == CONTEXT - len(prompt)
    assert longest({"window": {"recent": 64}}) == CONTEXT - len(prompt)
    cfg = {"cfg": {"scale": 1.5, "negative_prompt": "no"}}
    both = input_processor.prepare(
        Input(
            request_id="r",
            prompt=prompt,
            params=params(CONTEXT - 20),
            decoding=cfg,
            kv_cache={"window": {"recent": 64}},
        )
    )
    assert len(both.contexts) == 1
    with pytest.raises(ContextLengthError, match="contexts need"):
        input_processor.prepare(
            Input(request_id="r", prompt=prompt, params=params(600), decoding=cfg)
        )


@pytest.mark.parametrize("fits", [True, False])
def test_what_is_kept_has_to_fit_beside_what_is_read(fits: bool, small_pool: Built) -> None:
    # 600 tokens are 38 pages; of 64 pages 26 are left, which hold 416 slots.
    kv_cache: dict[str, Any] = {"h2o": {"heavy": 200, "recent": 200 if fits else 201}}
    fields: dict[str, Any] = {"request_id": "r", "prompt": [5] * 600, "params": params(5000)}
    if fits:
        input_processor = small_pool.input_processor
        request = input_processor.prepare(Input(kv_cache=kv_cache, **fields))
        small_pool.engine.add(request)
        for _ in range(10):
            small_pool.engine.step()
        assert small_pool.engine.pool.in_use == 26
        assert small_pool.engine.stats().preemptions == 0
        small_pool.engine.abort_all()
        return
    with pytest.raises(ContextLengthError, match="keep less"):
        small_pool.input_processor.prepare(Input(kv_cache=kv_cache, **fields))


def test_a_prompt_shorter_than_what_is_kept_reserves_nothing_early(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"), prefix_cache=False)
    choice = h2o(heavy=40, recent=40, interval=16)
    held: list[tuple[int, int]] = []

    def after_step() -> None:
        (sequence,) = built.engine.scheduler.running or [None]
        if sequence is not None:
            in_slots = isinstance(sequence.table, SlotTable)
            held.append((built.engine.pool.in_use, 6 if in_slots else -(-sequence.computed // 16)))

    job = Job(prompt=[1, 2, 3], params=params(200))
    (answer,) = run(built, [job], change=with_policy(choice), after_step=after_step)
    assert len(answer.tokens[0]) == 200
    assert [found for found, _ in held] == [expected for _, expected in held]
    assert max(found for found, _ in held) == 6


def test_pages_given_back_serve_others_at_once(tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    size = build(folder).engine.bytes_per_token * PAGE
    # A prompt of 160 tokens: 10 pages. 2 x 3 pages are kept; so the second fits beside the first
    # only when that has given its prompt's pages back, and with full caches not at all.
    built = build(folder, kv_cache_memory=17 * size, prefix_cache=False, max_model_len=260)
    jobs = [Job(prompt=[i + k for k in range(160)], params=params(100)) for i in range(2)]

    def most_running(change: Any) -> tuple[int, int]:
        most = 0

        def after_step() -> None:
            nonlocal most
            engine = built.engine
            decoding = [s for s in engine.scheduler.running if s.has_output]
            most = max(most, len(decoding))

        before = built.engine.stats().preemptions
        run(built, jobs, change=change, after_step=after_step)
        return most, built.engine.stats().preemptions - before

    assert most_running(with_policy(h2o(heavy=16, recent=16, interval=16))) == (2, 0)
    assert most_running(unchanged)[0] == 1


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("length", [10, 60])
def test_choices_and_contexts_take_what_intake_counts(
    n: int, length: int, tiny_model: TinyModel
) -> None:
    """The smallest pool that intake accepts is enough to run alone."""
    folder = tiny_model("llama")
    sampling = SamplingParams(max_tokens=120, temperature=1, seed=1, ignore_eos=True, n=n)
    job = Job(
        prompt=list(range(length)),
        params=sampling,
        decoding={"cfg": {"scale": 1.5}},
        kv_cache={"h2o": {"heavy": 20, "recent": 20, "interval": 8}},
    )
    expected = run(build(folder, prefix_cache=False), [job])[0].tokens
    small = smallest_pool(folder, job)
    assert small.engine.pool.count < 40
    small.engine.add(prepare(small, "0", job))
    found: list[list[int]] = [[] for _ in range(n)]
    for _ in range(2000):
        for output in small.engine.step():
            found[output.index] += output.token_ids
        if not small.engine.has_work:
            break
    assert found == expected


def smallest_pool(folder: Path, job: Job) -> Built:
    size = build(folder).engine.bytes_per_token * PAGE
    for pages in range(2, 64):
        built = build(folder, kv_cache_memory=pages * size, prefix_cache=False)
        try:
            prepare(built, "r", job)
        except ContextLengthError:
            continue
        return built
    raise AssertionError("64 pages are enough")
