"""Evicting cache policies in the engine: h2o and window, alone and in every company."""

import random
from dataclasses import replace
from typing import Any

import pytest

from penstock import SamplingParams
from penstock.engine.build import Built
from penstock.engine.state.request import Request
from penstock.kvcache.h2o import H2O_POLICY, H2OParameters
from penstock.kvcache.keynorm import KEY_NORM, KeyNormParameters
from penstock.kvcache.tova import TOVA, TovaParameters
from penstock.kvcache.window import WINDOW, WindowParameters
from penstock.registry import Choice
from tests.conftest import TinyModel
from tests.engine.jobs import Answer, Job, build, run
from tests.engine.test_drafting import METHODS, jobs


def h2o(**fields: Any) -> Choice[Any]:
    return Choice(method=H2O_POLICY, parameters=H2OParameters(**fields))


def window(**fields: Any) -> Choice[Any]:
    return Choice(method=WINDOW, parameters=WindowParameters(**fields))


def keynorm(**fields: Any) -> Choice[Any]:
    return Choice(method=KEY_NORM, parameters=KeyNormParameters(**fields))


def tova(**fields: Any) -> Choice[Any]:
    return Choice(method=TOVA, parameters=TovaParameters(**fields))


def tokens(answers: list[Answer]) -> list[list[list[int]]]:
    return [answer.tokens for answer in answers]


def with_policy(choice: Choice[Any]) -> Any:
    def change(request: Request) -> Request:
        return replace(request, policy=choice)

    return change


KINDS = ["llama", "mistral", "gemma2", "gpt_oss"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_that_holds_everything_changes_nothing(kind: str, tiny_model: TinyModel) -> None:
    built = build(tiny_model(kind), prefix_cache=False)
    expected = tokens(run(built, jobs()))
    # One token short of everything: masses are recorded, and nothing moves.
    choice = h2o(heavy=45, recent=44)
    assert tokens(run(built, jobs(), change=with_policy(choice))) == expected
    assert built.engine.pool.in_use == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("choice", "dtype"),
    [
        (h2o(heavy=6, recent=8, sink=2, interval=1), "auto"),
        (h2o(heavy=6, recent=8, sink=2, interval=4), "auto"),
        (h2o(heavy=6, recent=8, sink=2, interval=16), "auto"),
        (h2o(heavy=6, recent=8, sink=2, interval=4), "int8"),
        (h2o(heavy=6, recent=8, sink=2, interval=4), "fp8"),
        (keynorm(low=6, recent=8, interval=4), "auto"),
        (keynorm(low=6, recent=8, interval=4), "int8"),
        (tova(keep=14, interval=1), "auto"),
        (tova(keep=14, interval=4), "int8"),
    ],
    ids=["1", "4", "16", "int8", "fp8", "keynorm", "keynorm int8", "tova", "tova int8"],
)
def test_chunks_neighbours_drafts_and_preemption_change_nothing(
    kind: str, choice: Choice[Any], dtype: str, tiny_model: TinyModel
) -> None:
    folder = tiny_model(kind)
    roomy = build(folder, prefix_cache=False, kv_cache_dtype=dtype)
    alone = [run(roomy, [job], change=with_policy(choice))[0].tokens for job in jobs()]
    assert alone != tokens(run(roomy, jobs())), "something was evicted"
    assert tokens(run(roomy, jobs(), change=with_policy(choice))) == alone
    small = build(
        folder,
        chunk_tokens=7,
        max_model_len=96,
        kv_cache_memory=roomy.engine.bytes_per_token * 16 * 12,
        kv_cache_dtype=dtype,
    )
    for shift in (0, 3):
        mixed = [
            job.with_decoding(METHODS[(shift + 5 * i) % len(METHODS)])
            for i, job in enumerate(jobs())
        ]
        assert tokens(run(small, mixed, change=with_policy(choice))) == alone
    assert small.engine.pool.in_use == 0


@pytest.mark.parametrize("dtype", ["auto", "int8", "fp8"])
def test_what_was_evicted_survives_preemption(dtype: str, tiny_model: TinyModel) -> None:
    folder = tiny_model("llama")
    roomy = build(folder, kv_cache_dtype=dtype)
    evicting = h2o(heavy=6, recent=8, interval=4)
    long = SamplingParams(max_tokens=80, temperature=0, ignore_eos=True)
    # Full caches grow until somebody has to go, and the last to come are those that evict.
    mixed = [Job(prompt=[i, 2, 3], params=long) for i in range(6)]
    choices = [None, None, None, evicting, evicting, evicting]
    expected = [
        run(roomy, [job], change=_chosen(choice))[0].tokens
        for job, choice in zip(mixed, choices, strict=True)
    ]
    size = roomy.engine.bytes_per_token * 16 * 16
    small = build(folder, max_model_len=96, kv_cache_memory=size, kv_cache_dtype=dtype)
    swapped = 0
    swap_out = small.engine.scheduler._on_preempt  # pyright: ignore[reportPrivateUsage]

    def counted(sequence: Any) -> None:
        nonlocal swapped
        swap_out(sequence)
        swapped += sequence.swapped is not None

    small.engine.scheduler._on_preempt = counted  # pyright: ignore[reportPrivateUsage]
    waiting = iter(choices)

    def change(request: Request) -> Request:
        return _chosen(next(waiting))(request)

    answers = run(small, mixed, change=change)
    assert tokens(answers) == expected
    assert swapped > 0
    assert small.engine.pool.in_use == 0


def test_restored_and_preempted_in_one_step(tiny_model: TinyModel) -> None:
    """Of two owners, one may take the pages of what the other has just been given back."""
    folder = tiny_model("llama")
    chooser = random.Random(2)
    policies = [h2o(heavy=8, recent=8, interval=4), h2o(heavy=4, recent=12, interval=4), None]
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    asked = [
        Job(
            prompt=[chooser.randrange(256) for _ in range(chooser.choice([33, 64, 100]))],
            params=params,
        )
        for _ in range(60)
    ]
    choices = [chooser.choice(policies) for _ in asked]
    roomy = build(folder)
    memory = roomy.engine.bytes_per_token * 400
    small = build(folder, page_size=4, kv_cache_memory=memory, max_model_len=160)
    order = iter(range(len(asked)))

    def change(request: Request) -> Request:
        number = next(order)
        return replace(_chosen(choices[number])(request), owner="ab"[number % 2])

    found = tokens(run(small, asked, change=change))
    for job, choice, answer in zip(asked, choices, found, strict=True):
        assert run(roomy, [job], change=_chosen(choice))[0].tokens == answer
    assert small.engine.stats().preemptions > 0
    assert small.engine.pool.in_use == 0


def test_long_chunks_are_computed_in_pieces(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(tiny_model("llama"), prefix_cache=False, attention_backend="torch")
    choice = h2o(heavy=6, recent=8, interval=4)
    drafted = [job.with_decoding({"jacobi": {"window": 5, "adaptive": False}}) for job in jobs()]
    expected = tokens(run(built, drafted, change=with_policy(choice)))
    monkeypatch.setattr("penstock.kernels.scored_attention.reference._TILE", 4 * 40 * 3)
    assert tokens(run(built, drafted, change=with_policy(choice))) == expected


def test_full_and_evicting_requests_share_steps(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    choices = [h2o(heavy=6, recent=8, interval=4), window(recent=12), None]
    expected = [
        run(built, [job], change=_chosen(choices[i % 3]))[0].tokens for i, job in enumerate(jobs())
    ]
    numbers = iter(range(100))

    def change(request: Request) -> Request:
        return _chosen(choices[next(numbers) % 3])(request)

    assert tokens(run(built, jobs(), change=change)) == expected


def _chosen(choice: Choice[Any] | None) -> Any:
    return unchanged if choice is None else with_policy(choice)


def unchanged(request: Request) -> Request:
    return request


def test_memory_is_given_back_after_the_prompt(tiny_model: TinyModel) -> None:
    built: Built = build(tiny_model("llama"), prefix_cache=False, chunk_tokens=64)
    params = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)
    job = Job(prompt=[i % 250 for i in range(200)], params=params)
    held: list[int] = []
    run(
        built,
        [job],
        change=with_policy(h2o(heavy=20, recent=20, interval=8)),
        after_step=lambda: held.append(built.engine.pool.in_use),
    )
    # While it is read, what will be kept has its pages too; then ceil((40 + 8) / 16) are left.
    assert held[:3] == [4 + 3, 8 + 3, 12 + 3]
    assert set(held[3:-1]) == {3}
    assert held[-1] == 0
