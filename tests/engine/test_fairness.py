"""Callers share one engine: no request of one takes what all others need.

The kind: whatever is short (rows of a step, its time, places, pages, the turn to be admitted) was
given by arrival, so that one caller's legal requests could take all of it. Each is tested here by
itself, on a clock that only steps advance, so that what they take is known.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from penstock import SamplingParams
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.requests.input import Input
from penstock.engine.state.request import StepOutput
from penstock.engine.state.step import Step
from tests.conftest import TinyModel

BASE_S, ROW_S = 0.004, 0.0005
"""Of a step, and of each of its rows."""


@dataclass(slots=True)
class Clock:
    """Stands still but for what advances it."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """An engine whose steps take `BASE_S` and `ROW_S` for each row; `dear`: what rows of an owner
    take besides."""

    def __init__(self, folder: Any, dear: dict[str, float] | None = None, **settings: Any) -> None:
        self.clock = Clock()
        fields: dict[str, Any] = {"kv_cache_memory": 0.01, "max_running": 16, **settings}
        config = EngineConfig(model=str(folder), max_batch_tokens=64, **fields)
        self.built: Built = build_engine(config, self.clock)
        self.engine = self.built.engine
        self.steps: list[dict[str, int]] = []
        self.tokens_s: dict[str, list[float]] = {}
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self._ids = itertools.count()
        forward = self.engine.runner.run

        def run(step: Step) -> Any:
            rows: dict[str, int] = {}
            for chunk in step.chunks:
                owner = chunk.sequence.request.owner
                rows[owner] = rows.get(owner, 0) + chunk.count
            self.steps.append(rows)
            extra_s = sum((dear or {}).get(owner, 0.0) * n for owner, n in rows.items())
            self.clock.now_s += BASE_S + ROW_S * step.rows + extra_s
            return forward(step)

        self.engine.runner.run = run  # pyright: ignore[reportAttributeAccessIssue]

    def ask(self, owner: str, prompt: Iterable[int] | int, count: int, **fields: Any) -> str:
        """Queue a request; a number is the length of a prompt that begins like no other."""
        number = next(self._ids)
        ids = [number % 250, *range(prompt - 1)] if isinstance(prompt, int) else list(prompt)
        ids = [i % 250 for i in ids]
        own: dict[str, Any] = {
            name: fields.pop(name) for name in ("weight", "priority") if name in fields
        }
        sampling: dict[str, Any] = {"seed": 1, **fields}
        params = SamplingParams(max_tokens=count, ignore_eos=True, **sampling)
        made = self.built.input_processor.prepare(
            Input(request_id=f"{owner}{number}", prompt=ids, params=params)
        )
        self.engine.add(replace(made, owner=owner, **own))
        return made.id

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if not self.engine.has_work:
                return
            self.note(self.engine.step())

    def until(self, done: Callable[[], bool], most: int = 2000) -> int:
        """Steps that it took."""
        for count in range(most):
            if done():
                return count
            self.run(1)
        raise AssertionError(f"not within {most} steps")

    def note(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            self.tokens.setdefault((output.request_id, output.index), []).extend(output.token_ids)
            self.tokens_s.setdefault(output.request_id, []).append(self.clock.now_s)

    def gap_s(self, name: str, last: int) -> float:
        """Mean time between the last so many tokens of a request of one choice."""
        times = self.tokens_s[name][-last - 1 :]
        return (times[-1] - times[0]) / (len(times) - 1)


Make = Callable[..., Bench]


@pytest.fixture
def make(tiny_model: TinyModel) -> Iterator[Make]:
    """Benches, whose engines are emptied at the end."""
    made: list[Bench] = []

    def one(**settings: Any) -> Bench:
        made.append(Bench(tiny_model("llama"), **settings))
        return made[-1]

    yield one
    for bench in made:
        bench.engine.abort_all()


@pytest.fixture
def bench(make: Make) -> Bench:
    return make()


ALONE_S = BASE_S + ROW_S


@pytest.mark.parametrize(
    ("dear_s", "n", "prompts"),
    [(0.0, 15, 0), (0.0, 1, 12), (0.02, 15, 0), (0.1, 1, 0), (0.005, 8, 12)],
    ids=["choices", "prompts", "dear-choices", "dear-row", "dear-prompts"],
)
def test_a_token_takes_no_longer_than_a_fair_part_makes_it(
    dear_s: float, n: int, prompts: int, make: Make
) -> None:
    """Whatever the other's rows cost, beside one of them the mean is below 3 times that alone."""
    bench = make(dear={"b": dear_s})
    victim = bench.ask("a", 5, 400)
    bench.run(40)
    assert bench.gap_s(victim, 30) == pytest.approx(ALONE_S)
    bench.ask("b", 20, 180, n=n)
    for _ in range(prompts):
        bench.ask("b", 200, 30)
    bench.run(260)
    assert bench.gap_s(victim, 200) < 2.5 * ALONE_S
    late = bench.steps[-100:]
    assert all("a" in rows or bench.engine.stats().running for rows in late)
    assert sum(rows.get("b", 0) for rows in late) > 0, "the other goes on too"


def test_alone_everything_is_taken(bench: Bench) -> None:
    for _ in range(6):
        bench.ask("a", 200, 4)
    bench.run(8)
    assert [sum(rows.values()) for rows in bench.steps] == [64] * 8


def test_two_tenants_of_three_and_one_shares_read_three_rows_to_one(bench: Bench) -> None:
    for _ in range(8):
        bench.ask("a", 240, 1, weight=3.0)
        bench.ask("b", 240, 1)
    bench.run(20)
    rows = {owner: sum(step.get(owner, 0) for step in bench.steps) for owner in "ab"}
    assert rows["a"] + rows["b"] == 20 * 64
    assert rows["a"] == pytest.approx(3 * rows["b"], rel=0.05)


def test_behind_long_prompts_of_another_a_short_one_is_read_at_once(bench: Bench) -> None:
    for _ in range(64):
        bench.ask("b", 240, 20)
    bench.run(3)
    short = bench.ask("a", 20, 5)
    assert bench.until(lambda: short in bench.tokens_s) <= 2


def test_behind_own_long_prompts_a_short_one_is_next(bench: Bench) -> None:
    """Length orders what waits; but of four that are admitted one is the oldest."""
    for _ in range(12):
        bench.ask("a", 240, 2)
    bench.run(2)
    short = [bench.ask("a", 10, 2) for _ in range(6)]
    took = bench.until(lambda: short[0] in bench.tokens_s)
    assert took <= 2 * 240 // 64 + 2
    bench.until(lambda: not bench.engine.has_work)


def test_low_priority_waits_but_not_for_ever(make: Make) -> None:
    """Urgent requests without end: of four that are admitted one is the oldest."""
    bench = make(max_running=1)
    urgent = [bench.ask("a", 4, 2, priority=-5) for _ in range(2)]
    late = bench.ask("a", 4, 2)

    def served() -> bool:
        urgent.append(bench.ask("a", 4, 2, priority=-5))
        return late in bench.tokens_s

    bench.until(served, most=50)
    before = [name for name in urgent if name in bench.tokens_s]
    assert 3 <= len(before) <= 5


def test_the_priority_of_one_is_nothing_to_another(make: Make) -> None:
    bench = make(max_running=2)
    for _ in range(20):
        bench.ask("b", 4, 5, priority=-(2**31 - 1))
    bench.run(2)
    other = bench.ask("a", 4, 2)
    assert bench.until(lambda: other in bench.tokens_s) <= 3


@pytest.mark.parametrize("begun", [0, 1, 5], ids=["waiting", "reading", "decoding"])
@pytest.mark.parametrize("prefix_cache", [True, False], ids=["cache", "no-cache"])
def test_choices_of_one_leave_a_place_and_their_texts_stay(
    begun: int, prefix_cache: bool, make: Make
) -> None:
    """Another's request is in the next steps, and is not waited for to the end."""
    calm = make(prefix_cache=prefix_cache)
    whole = calm.ask("b", range(100), 30, n=16)
    calm.until(lambda: not calm.engine.has_work)
    expected = [calm.tokens[whole, index] for index in range(16)]

    bench = make(prefix_cache=prefix_cache)
    many = bench.ask("b", range(100), 30, n=16)
    bench.run(begun)
    chat = bench.ask("a", 10, 60)
    assert bench.until(lambda: chat in bench.tokens_s) <= 4
    bench.until(lambda: (many, 0) in bench.tokens, most=60)
    bench.until(lambda: not bench.engine.has_work)
    assert [bench.tokens[many, index] for index in range(16)] == expected
    assert len(bench.tokens[chat, 0]) == 60
    stats = bench.engine.stats()
    assert (stats.running, stats.waiting, stats.pages_in_use) == (0, 0, 0)


def test_choices_of_many_that_do_not_fit_beside_another_begin_all_the_same(bench: Bench) -> None:
    """A stream of another has a place; the request of as many choices as there are starts."""
    bench.ask("a", 5, 300)
    bench.run(3)
    many = bench.ask("b", 30, 20, n=16)
    bench.until(lambda: (many, 14) in bench.tokens, most=60)
    bench.engine.abort(many, 15)
    bench.until(lambda: len(bench.tokens.get((many, 14), [])) == 20, most=200)
    assert (many, 15) not in bench.tokens


def test_whoever_holds_most_pages_gives_them_back(make: Make) -> None:
    """The last to arrive is not preempted for one that holds nearly all."""
    bench = make(kv_cache_memory=16 * 12_288, max_model_len=250)
    assert bench.engine.pool.count == 16
    for _ in range(3):
        bench.ask("b", 60, 80)
    bench.until(lambda: bench.engine.pool.available == 0, most=200)
    chat = bench.ask("a", 30, 20)
    assert bench.until(lambda: chat in bench.tokens_s) <= 6
    bench.until(lambda: len(bench.tokens_s[chat]) == 20, most=40)
    bench.until(lambda: not bench.engine.has_work)
    assert bench.engine.stats().preemptions > 0


def test_shared_beginnings_are_not_waited_for_across_owners(bench: Bench) -> None:
    """A reader of another owner may be slow: nobody waits for it."""
    prompt = list(range(240))
    bench.ask("b", prompt, 5)
    bench.run(1)
    short = bench.ask("a", prompt[:100], 5)
    assert bench.until(lambda: short in bench.tokens_s) <= 4


def test_who_decodes_with_prompts_waiting_leaves_rows_to_one_that_waits(bench: Bench) -> None:
    """The only flow that decodes bounds the step; what it has waiting could fill every step.

    Where else: a search beside the same owner's chats, forks and preempted sequences that wait.
    """
    for _ in range(40):
        bench.ask("a", 60, 30)
    bench.run(40)
    name = bench.ask("b", 5, 4)
    assert bench.until(lambda: (name, 0) in bench.tokens) <= 4
