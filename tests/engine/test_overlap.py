"""Steps launched ahead of their tokens, with what stands in for CUDA's graphs on a CPU."""

from dataclasses import replace
from typing import Any

import pytest

from penstock import SamplingParams
from penstock.engine.build import Built
from penstock.engine.state.request import StepOutput
from penstock.kernels.transfer import Arriving
from tests.conftest import TinyModel
from tests.engine.jobs import Job, prepare, run
from tests.engine.test_cuda_graphs import Counting, on_triton, with_graphs

pytest.importorskip("triton")

GREEDY = SamplingParams(max_tokens=7, temperature=0, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=5, temperature=1.0, top_k=40, seed=3, ignore_eos=True, n=2)
JOBS = [
    Job(prompt=list(range(9, 40)), params=GREEDY),
    Job(prompt=[7, 8], params=SEEDED),
    Job(prompt=[12], params=GREEDY),
]


def flying(tiny_model: TinyModel, **settings: Any) -> tuple[Built, Counting]:
    built = on_triton(tiny_model("llama"), **settings)
    executor = Counting()
    with_graphs(built, executor)
    executor.replays = 0
    return built, executor


def tokens_of(outputs: list[StepOutput]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for output in outputs:
        found.setdefault(output.request_id, []).extend(output.token_ids)
    return found


def finished(built: Built, outputs: list[StepOutput]) -> dict[str, list[int]]:
    while built.engine.has_work:
        outputs += built.engine.step()
    return tokens_of(outputs)


def test_the_next_step_is_launched_before_tokens_are_waited_for(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, executor = flying(tiny_model)
    wait, launched = Arriving.wait, list[int]()

    def noted(self: Arriving) -> list[Any]:
        launched.append(executor.replays)
        return wait(self)

    monkeypatch.setattr(Arriving, "wait", noted)
    run(built, JOBS[:1])
    # Seven tokens: one with the prompt, six by graphs, of which all but the first run ahead.
    assert launched == [2, 3, 4, 5, 6, 6]
    assert executor.replays == 6


def test_the_tokens_of_steps_one_by_one(tiny_model: TinyModel) -> None:
    expected = run(on_triton(tiny_model("llama")), JOBS)
    built, _ = flying(tiny_model, page_size=4)
    found = run(built, JOBS)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert [one.reasons for one in found] == [one.reasons for one in expected]


def test_a_stop_token_ends_a_sequence_whose_next_row_is_on_its_way(tiny_model: TinyModel) -> None:
    (whole,) = run(on_triton(tiny_model("llama")), JOBS[:1])
    third = whole.tokens[0][2]
    assert third not in whole.tokens[0][:2]
    stops = GREEDY.model_copy(update={"stop_token_ids": [third]})
    built, executor = flying(tiny_model, page_size=1)
    stopped, other = run(built, [Job(prompt=JOBS[0].prompt, params=stops), JOBS[2]])
    assert stopped.tokens[0] == whole.tokens[0][:3]
    assert stopped.reasons == [("stop", third)]
    assert other.tokens == run(on_triton(tiny_model("llama")), JOBS[2:])[0].tokens
    assert executor.replays == 6
    assert built.engine.pool.in_use == 0


def test_who_leaves_or_comes_meanwhile(tiny_model: TinyModel) -> None:
    """One is aborted with a row on its way, another comes and gets its pages."""
    newcomer = Job(prompt=list(range(70, 95)), params=GREEDY)
    expected = run(on_triton(tiny_model("llama")), [JOBS[0], newcomer])
    # Room for two of three.
    built, _ = flying(tiny_model, page_size=4, kv_cache_memory=70_000.0, max_model_len=48)
    engine = built.engine
    leaving = Job(prompt=list(range(110, 141)), params=GREEDY)
    for number, job in enumerate((JOBS[0], leaving)):
        engine.add(prepare(built, str(number), job))
    outputs = [*engine.step(), *engine.step(), *engine.step()]
    assert engine.pool.available < 8
    engine.abort("1")
    engine.add(prepare(built, "2", newcomer))
    found = finished(built, outputs)
    assert found["0"] == expected[0].tokens[0]
    assert found["2"] == expected[1].tokens[0]
    assert len(found["1"]) < 7
    assert engine.pool.in_use == 0


def test_all_may_leave(tiny_model: TinyModel) -> None:
    built, _ = flying(tiny_model)
    engine = built.engine
    engine.add(prepare(built, "0", JOBS[0]))
    engine.step()
    engine.step()
    engine.abort("0")
    assert not engine.has_work
    assert engine.step() == []
    assert run(built, JOBS[2:])[0].tokens == run(on_triton(tiny_model("llama")), JOBS[2:])[0].tokens


@pytest.mark.parametrize(
    "changes",
    [
        {"params": GREEDY.model_copy(update={"repetition_penalty": 1.5})},
        {"params": GREEDY.model_copy(update={"temperature": 0.7, "top_p": 0.5, "seed": 1})},
        {"logprobs": 2},
        {"decoding": {"cfg": {"scale": 2.0}}},
        {"decoding": {"ngram": {"window": 2}}},
    ],
    ids=["penalty", "top-p", "logprobs", "guidance", "drafts"],
)
def test_what_needs_its_tokens_has_its_steps_one_by_one(
    changes: dict[str, Any], tiny_model: TinyModel
) -> None:
    jobs = [JOBS[0], replace(JOBS[0], **changes)]
    expected = run(on_triton(tiny_model("llama")), jobs)
    built, _ = flying(tiny_model)
    for number, job in enumerate(jobs):
        built.engine.add(prepare(built, str(number), job))
    outputs = list[StepOutput]()
    while len(built.engine.scheduler.running) == 2 or not outputs:
        outputs += built.engine.step()
        if len(built.engine.scheduler.running) == 2:
            assert not built.engine._overlap.busy  # pyright: ignore[reportPrivateUsage]
    found = finished(built, outputs)
    assert [found["0"], found["1"]] == [one.tokens[0] for one in expected]


def test_where_pages_are_short_nobody_runs_ahead_or_is_pushed_out_for_it(
    tiny_model: TinyModel,
) -> None:
    """Two sequences for whose rows there are pages, but not for all rows after them."""
    longer = GREEDY.model_copy(update={"max_tokens": 40})
    jobs = [Job(prompt=list(range(n, n + 16)), params=longer) for n in (5, 50)]
    expected = run(on_triton(tiny_model("llama")), jobs)
    settings: dict[str, Any] = {"page_size": 4, "kv_cache_memory": 60_000.0, "max_model_len": 64}
    one_by_one = on_triton(tiny_model("llama"), **settings)
    run(one_by_one, jobs)
    built, _ = flying(tiny_model, **settings)
    found = run(built, jobs)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    preemptions = built.engine.stats().preemptions
    assert preemptions == one_by_one.engine.stats().preemptions > 0


def test_who_waits_for_pages_holds_nobody_back(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first decodes there are no pages for the second, and steps run ahead."""
    jobs = [
        Job(prompt=list(range(5, 40)), params=GREEDY),
        Job(prompt=list(range(50, 90)), params=GREEDY),
    ]
    expected = run(on_triton(tiny_model("llama")), jobs)
    built, executor = flying(tiny_model, page_size=4, kv_cache_memory=52_000.0, max_model_len=64)
    wait, ahead = Arriving.wait, list[bool]()

    def noted(self: Arriving) -> list[Any]:
        ahead.append(executor.replays > len(ahead) + 1)
        return wait(self)

    monkeypatch.setattr(Arriving, "wait", noted)
    found = run(built, jobs)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert ahead == ([True] * 5 + [False]) * 2
