"""What rows cost in a step, and how many draft tokens are worth their rows."""

from dataclasses import replace
from math import inf
from random import Random
from statistics import fmean
from typing import Any, cast

import pytest
from pydantic import BaseModel

from penstock import SamplingParams
from penstock.decoding.drafting.base import DraftContext, Drafter, Drafting, Vocabulary
from penstock.decoding.drafting.draft import Draft
from penstock.decoding.methods import Methods
from penstock.decoding.sampling import Row
from penstock.engine.build import Built
from penstock.engine.speculation.planner import DraftPlanner
from penstock.engine.speculation.step_cost import StepCostModel
from penstock.engine.state.sequence import Sequence
from penstock.engine.state.step import Decoded
from penstock.registry import Choice, NoParameters
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, prepare


def paced(seconds: dict[int, float], rows: int = 1) -> StepCostModel:
    """A model that has learned what `rows` cost, with draft tokens up to each number of rows."""
    step_cost = StepCostModel(lambda: 0.0)
    for _ in range(200):
        for size, cost in seconds.items():
            if size >= rows:
                step_cost.observe(rows, size - rows, size > rows, cost)
    return step_cost


def plain(seconds: dict[int, float]) -> StepCostModel:
    """A model that has learned what each number of rows costs without draft tokens."""
    step_cost = StepCostModel(lambda: 0.0)
    for _ in range(100):
        for rows, cost in seconds.items():
            step_cost.observe(rows, 0, 0, cost)
    return step_cost


def test_it_interpolates_and_extrapolates() -> None:
    step_cost = plain({1: 1.0, 4: 2.5, 8: 3.0})
    for rows, seconds in ((1, 1.0), (2, 1.5), (4, 2.5), (6, 2.75), (8, 3.0), (16, 6.0)):
        assert step_cost.seconds(rows) == pytest.approx(seconds, rel=0.1)
    assert StepCostModel(lambda: 0.0).seconds(7) == 1.0
    assert plain({8: 2.0}).seconds(1) < plain({8: 2.0}).seconds(4) < 2.0


def test_it_follows_and_forgets_outliers() -> None:
    step_cost = plain({1: 1.0})
    step_cost.observe(1, 0, 0, 1000.0)
    assert step_cost.seconds(1) < 1.25
    for _ in range(60):
        step_cost.observe(1, 0, 0, 3.0)
    assert step_cost.seconds(1) == pytest.approx(3.0, rel=0.01)


def test_a_clock_that_stands_still_is_no_error() -> None:
    step_cost = StepCostModel(lambda: 0.0)
    for draft_tokens in (0, 4, 0, 4):
        step_cost.observe(1, draft_tokens, int(draft_tokens > 0), 0.0)
    assert step_cost.seconds(1, 4, 1) == 0.0


def test_one_slow_first_step_is_forgotten() -> None:
    step_cost = plain({1: 0.01})
    step_cost.observe(1, 4, 1, 0.5)
    step_cost.observe(1, 7, 1, 0.05)
    assert step_cost.seconds(1, 4, 1) < 0.02
    for _ in range(10_000):
        step_cost.observe(1, 0, 0, 0.01)
    assert step_cost.seconds(1, 4, 1) < 0.0102
    assert step_cost.seconds(1, 7, 1) < 0.0102


def test_it_learns_what_draft_tokens_and_drafting_cost() -> None:
    step_cost = plain({16: 1.0})
    assert step_cost.seconds(16, 8) == pytest.approx(1.16), "nothing is known yet"
    for _ in range(500):
        step_cost.observe(16, 0, 0, 1.0)
        step_cost.observe(16, 4, 4, 1.4)
        step_cost.observe(16, 16, 4, 1.7)
        step_cost.observe(16, 16, 16, 2.9)
    assert step_cost.seconds(16) == pytest.approx(1.0, rel=0.05)
    assert step_cost.seconds(16, 4, 4) == pytest.approx(1.4, rel=0.05)
    assert step_cost.seconds(16, 16, 4) == pytest.approx(1.7, rel=0.05)
    assert step_cost.seconds(16, 16, 16) == pytest.approx(2.9, rel=0.05)


def test_sizes_beside_the_grid_are_learned_whatever_their_neighbours_were() -> None:
    """17 rows are kept at 16; those of 19 have long not been measured, and seem cheap."""
    step_cost = plain({1: 1.0})
    step_cost.observe(1, 18, 1, 2.0)
    for _ in range(3000):
        step_cost.observe(1, 16, 1, 2.6)
    assert step_cost.seconds(1, 16, 1) == pytest.approx(2.6, rel=0.02)
    assert step_cost.seconds(1, 15, 1) == pytest.approx(2.5, rel=0.05)


@pytest.mark.parametrize("rows", [9, 12, 14, 17, 20, 48, 69])
def test_numbers_of_rows_beside_the_grid_cost_what_they_cost(rows: int) -> None:
    assert plain({1: 1.0, rows: 3.0}).seconds(rows) == pytest.approx(3.0, rel=0.02)
    assert plain({rows: 3.0, 100: 5.0}).seconds(rows) == pytest.approx(3.0, rel=0.02)


def test_what_is_not_measured_seems_no_cheaper_than_less_and_no_dearer_than_it_was() -> None:
    step_cost = StepCostModel(lambda: 0.0)
    for _ in range(300):
        step_cost.observe(64, 0, 0, 1.0)
        step_cost.observe(64, 12, 1, 1.24)
        step_cost.observe(64, 64, 1, 1.6)
    before = step_cost.seconds(64, 64, 1)
    for _ in range(5000):  # only with few draft tokens
        step_cost.observe(64, 12, 1, 1.24)
    after = step_cost.seconds(64, 64, 1)
    assert step_cost.seconds(64, 12, 1) == pytest.approx(after, rel=0.02)
    assert after < before


def test_what_many_sequences_cost_says_nothing_of_draft_tokens() -> None:
    step_cost = plain({1: 1.0, 8: 4.0})
    assert step_cost.seconds(1, 7, 1) < 1.3


def test_a_slower_machine_is_not_taken_for_expensive_draft_tokens() -> None:
    """All steps draft, and everything becomes 1.5 times as slow: within a few steps the model asks
    for one without draft tokens, and for more as long as its estimates are off."""
    step_cost = paced({1: 1.0, 5: 1.1})
    without: list[int] = []
    for step in range(100):
        if step_cost.is_stale(1):
            without.append(step)
            step_cost.observe(1, 0, 0, 1.5)
        else:
            step_cost.observe(1, 4, 1, 1.65)
    assert without[0] < 10
    assert len(without) < 10
    assert step_cost.seconds(1) > 1.25
    for _ in range(100):
        step_cost.observe(1, 0, 0, 1.5)
        step_cost.observe(1, 4, 1, 1.65)
    assert step_cost.seconds(1, 4, 1) == pytest.approx(1.65, rel=0.03)
    assert step_cost.seconds(1) == pytest.approx(1.5, rel=0.03)


def test_sizes_that_only_seemed_cheap_do_not_make_plain_steps_seem_dear() -> None:
    """Whoever takes the cheapest of many noisy estimates finds it dearer than it seemed."""
    step_cost, rng = StepCostModel(lambda: 0.0), Random(1)
    step_cost.observe(1, 0, 0, 1.0)
    sizes, seen = (1, 2, 3, 4, 6, 8, 12, 16), list[float]()
    for _ in range(5000):
        noise = rng.lognormvariate(0, 0.2)
        if step_cost.is_stale(1):
            step_cost.observe(1, 0, 0, noise)
        else:
            size = min(sizes, key=lambda n: step_cost.seconds(1, n, 1) / (1 + n**0.5))
            step_cost.observe(1, size, 1, noise * (1.2 + 0.1 * size))
        seen.append(step_cost.seconds(1))
    assert fmean(seen) == pytest.approx(1.0, rel=0.06)


def test_where_every_step_drafts_a_step_without_tells_what_drafts_cost() -> None:
    step_cost = StepCostModel(lambda: 0.0)
    step_cost.observe(1, 0, 0, 1.0)
    without = 0
    for _ in range(1000):
        if step_cost.is_stale(1):
            without += 1
            step_cost.observe(1, 0, 0, 1.0)
        else:
            step_cost.observe(1, 7, 1, 2.6)
    assert step_cost.seconds(1) == pytest.approx(1.0, rel=0.05)
    assert step_cost.seconds(1, 7, 1) == pytest.approx(2.6, rel=0.05)
    assert without <= 10


def planned(built: Built, step_cost: StepCostModel, count: int, rights: float) -> list[int]:
    """Draft tokens planned for each of `count` Jacobi sequences; `rights`: their acceptance
    probability."""
    params = SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)
    job = Job(prompt=[1, 2], params=params, decoding={"jacobi": {"window": 16, "init": "pad"}})
    requests = [prepare(built, str(i), job) for i in range(count)]
    for request in requests:
        built.engine.add(replace(request))
    built.engine.step()
    running = built.engine.scheduler.running
    planner = DraftPlanner(
        step_cost, vocabulary=Vocabulary(size=320), max_rows=512, clock=lambda: 0.0
    )
    planner.plan(running)
    for sequence in running:
        state = planner._states[sequence]  # pyright: ignore[reportPrivateUsage]
        acceptance = cast("Any", state.drafting).acceptance
        for _ in range(200):
            acceptance.observe(1000, round(1000 * rights) if rights < 1 else 1000)
        acceptance._hits, acceptance._trials = rights * 10, 10.0
    planner.plan(running)
    sizes = [_size(sequence) for sequence in running]
    built.engine.abort_all()
    return sizes


def _size(sequence: Sequence) -> int:
    return 0 if sequence.draft is None else len(sequence.draft.tokens)


FLAT = {1: 1.0, 8: 1.01, 64: 1.1, 512: 1.5}
STEEP = {1: 1.0, 2: 2.0, 8: 8.0, 64: 64.0, 512: 512.0}


@pytest.mark.parametrize(
    ("costs", "rights", "low", "high"),
    [
        (FLAT, 0.95, 16, 16),
        (FLAT, 0.5, 3, 12),
        (FLAT, 0.0, 0, 0),
        (STEEP, 0.5, 0, 0),
        (STEEP, 0.0, 0, 0),
        ({1: 1.0, 8: 1.6, 16: 2.5, 64: 9.0}, 0.8, 4, 12),
    ],
)
def test_as_many_draft_tokens_are_planned_as_pay(
    costs: dict[int, float], rights: float, low: int, high: int, tiny_model: TinyModel
) -> None:
    (size,) = planned(build(tiny_model("llama")), paced(costs), 1, rights)
    assert low <= size <= high


def test_many_sequences_draft_less_than_one(tiny_model: TinyModel) -> None:
    costs = {1: 1.0, 16: 1.1, 32: 2.2, 64: 4.4, 512: 35.0}
    built = build(tiny_model("llama"))
    (alone,) = planned(built, paced(costs), 1, 0.8)
    many = planned(built, paced(costs, rows=16), 16, 0.8)
    assert alone >= 8
    assert max(many) <= 2


class _Asked(Drafting):
    """Says the same whenever it is asked, which takes a while."""

    def __init__(self, says: float, clock: list[float]) -> None:
        self._says = says
        self._clock = clock
        self.asked = self.finished = 0
        self.takes_s = 0.05

    def sizes(self, limit: int, worth: float) -> list[tuple[int, float]]:
        self.asked += 1
        self._clock[0] += self.takes_s
        return [(8, self._says)]

    def propose(self, size: int, limit: int) -> Draft:
        return Draft([0] * size)

    def finish(self) -> None:
        self.finished += 1
        self._clock[0] += 0.05


class _Asker(Drafter[NoParameters]):
    name = "asked"
    parameters: type[BaseModel] = NoParameters
    summary = "Says the same whenever it is asked."

    def __init__(self, drafting: Drafting) -> None:
        self._drafting = drafting

    def start(self, parameters: NoParameters, row: Row, context: DraftContext) -> Drafting:
        return self._drafting


def asking(built: Built, says: float) -> tuple[_Asked, DraftPlanner]:
    """A sequence with a drafter that says so, and a planner whose steps take one second."""
    clock = [0.0]
    drafting = _Asked(says, clock)
    params = SamplingParams(max_tokens=400, temperature=0, ignore_eos=True)
    choice = Choice(method=_Asker(drafting), parameters=NoParameters())
    request = prepare(built, "0", Job(prompt=[1, 2], params=params))
    built.engine.add(replace(request, methods=Methods(drafter=choice)))
    built.engine.step()
    planner = DraftPlanner(
        paced({1: 1.0, 9: 1.5}),
        vocabulary=Vocabulary(size=320),
        max_rows=512,
        clock=lambda: clock[0],
    )
    return drafting, planner


def drafted_in(built: Built, says: float, steps: int) -> tuple[int, int]:
    """How often a drafter that says so is asked and drafts."""
    drafting, planner = asking(built, says)
    drafts = 0
    for _ in range(steps):
        planner.plan(built.engine.scheduler.running)
        drafts += sum(_size(sequence) > 0 for sequence in built.engine.scheduler.running)
    built.engine.abort_all()
    return drafting.asked, drafts


def test_trials_take_a_hundredth_of_the_time(tiny_model: TinyModel) -> None:
    _, drafts = drafted_in(build(tiny_model("llama")), inf, 2000)
    # Each costs half a step more.
    assert 20 <= drafts <= 0.01 * 2000 / 0.5 + 1


def test_a_drafter_that_expects_nothing_is_asked_for_a_hundredth_of_the_time(
    tiny_model: TinyModel,
) -> None:
    asked, drafts = drafted_in(build(tiny_model("llama")), 0.1, 2000)
    assert drafts == 0
    assert 0.05 * asked / 2000 < 0.015
    asked, drafts = drafted_in(build(tiny_model("llama")), 6.0, 100)
    assert asked == drafts == 100


def test_who_is_not_worth_asking_is_not_told_of_every_end(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    drafting, planner = asking(built, 0.1)
    for _ in range(1000):  # answers of two tokens
        planner.plan(built.engine.scheduler.running)
        planner.plan(built.engine.scheduler.running)
        states = dict(planner._states)  # pyright: ignore[reportPrivateUsage]
        planner.finish(built.engine.scheduler.running[0])
        planner._states.update(states)  # pyright: ignore[reportPrivateUsage] -- it goes on
    built.engine.abort_all()
    assert 0.05 * (drafting.asked + drafting.finished) / 2000 < 0.015
    assert drafting.finished > 50


def test_asking_has_its_price(tiny_model: TinyModel) -> None:
    """Drafts would gain 7% if asking were free, but asking takes 6% of a step."""
    built = build(tiny_model("llama"))
    for asking_s, least, most in ((0.0, 100, 100), (0.06, 0, 60)):
        drafting, planner = asking(built, 0.6)
        drafting.takes_s = asking_s
        drafts = 0
        for _ in range(100):
            planner.plan(built.engine.scheduler.running)
            drafts += sum(_size(sequence) > 0 for sequence in built.engine.scheduler.running)
        built.engine.abort_all()
        assert least <= drafts <= most


def test_a_drafter_that_expects_too_much_is_scaled_down(tiny_model: TinyModel) -> None:
    """Two accepted draft tokens pay, and two are expected; drafting stops if only one is accepted,
    and goes on if both are."""
    built = build(tiny_model("llama"))
    for right, least, most in ((1, 0, 30), (2, 100, 100)):
        _, planner = asking(built, 2.0)
        planner._step_cost = paced({1: 1.0, 9: 2.5})  # pyright: ignore[reportPrivateUsage]
        drafts = 0
        for _ in range(100):
            planner.plan(built.engine.scheduler.running)
            (sequence,) = built.engine.scheduler.running
            if sequence.draft is not None:
                drafts += 1
                item = Decoded(
                    sequence=sequence,
                    tokens=[0],
                    draft=sequence.draft,
                    accepted=list(range(right)),
                    predictions=[0] * 9,
                )
                planner.learn(sequence, item)
        built.engine.abort_all()
        assert least <= drafts <= most


def test_one_long_interruption_does_not_keep_drafters_from_being_asked(
    tiny_model: TinyModel,
) -> None:
    built = build(tiny_model("llama"))
    drafting, planner = asking(built, 6.0)
    planner.plan(built.engine.scheduler.running)
    before = planner._clock  # pyright: ignore[reportPrivateUsage]
    jumps = iter([0.0, 5000.0])
    planner._clock = lambda: before() + next(jumps, 5000.0)  # pyright: ignore[reportPrivateUsage]
    planner.plan(built.engine.scheduler.running)
    planner._clock = before  # pyright: ignore[reportPrivateUsage]
    asked = drafting.asked
    for _ in range(100):
        planner.plan(built.engine.scheduler.running)
    built.engine.abort_all()
    assert drafting.asked - asked > 60
