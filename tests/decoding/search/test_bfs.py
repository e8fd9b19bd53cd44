"""Breadth first against the plain loop, in random worlds full of ties, duplicates and zeros."""

import math
from random import Random
from typing import Any

import pytest

from penstock.decoding.search.operations import Generate, Score
from penstock.decoding.search.parameters import Selection
from penstock.decoding.search.selection import select
from tests.decoding.search.reference import Path, Reference
from tests.decoding.search.scripted import Context, Driver, text_of
from tests.decoding.search.world import LABELS, PROMPTS, World


def bounded(value: float) -> float:
    return 0.0 if value != value else value


def reference(world: World, parameters: dict[str, Any]) -> Reference:
    count, votes = parameters["generate_samples"], parameters["evaluate_samples"]

    def generate(path: Path, times: int) -> list[tuple[str, bool]]:
        if parameters["generate"] == "sample":
            return [world.sample(path, choice) for choice in range(count * times)]
        lines = [line for c in range(count * times) for line in world.proposal(path, c)]
        return [(line, line.startswith("Answer:")) for line in lines]

    def value(path: Path) -> float:
        if parameters["evaluate"] == "external":
            return bounded(world.score(path))
        return sum(LABELS.get(world.label(path, choice), 0.0) for choice in range(votes))

    def judge_all(paths: list[Path]) -> list[float]:
        if not paths:
            return []
        said = [int(world.vote(paths, choice).split()[-1]) for choice in range(votes)]
        return [float(said.count(i + 1)) for i in range(len(paths))]

    if parameters["evaluate"] == "vote":
        return Reference(generate, judge_all=judge_all)
    return Reference(generate, value=value)


@pytest.mark.parametrize("select", ["greedy", "sample"])
@pytest.mark.parametrize("evaluate", ["value", "vote", "external"])
@pytest.mark.parametrize("generate", ["propose", "sample"])
def test_it_is_the_plain_loop(generate: str, evaluate: str, select: str) -> None:
    for seed in range(20):
        rng, world = Random(seed), World(seed)
        parameters: dict[str, Any] = {
            "generate": generate,
            "evaluate": evaluate,
            "generate_samples": rng.randint(1, 4),
            "evaluate_samples": rng.randint(1, 3),
        }
        run: dict[str, Any] = {
            "depth": rng.randint(1, 4),
            "breadth": rng.randint(1, 4),
            "select": select,
        }
        expected = reference(world, parameters)
        expected.run(**run, seed=seed)
        if evaluate == "external":
            parameters["evaluator"] = "reward"
        driver = Driver(reply=world.reply, evaluate=world.evaluate)
        outcome = driver.run(
            Context(seed=seed, n=run["breadth"]),
            **parameters,
            **run,
            prompts=PROMPTS,
            labels=LABELS,
        )
        made = [(driver.path(node), node.value, node.status) for node in driver.made]
        assert made == [node for step in expected.steps for node in step], seed
        texts = ["\n".join(path) for path in expected.best(run["breadth"])]
        assert [answer.text for answer in outcome.answers] == (list(dict.fromkeys(texts)) or [""])
        assert {answer.finish_reason for answer in outcome.answers} == {"stop"}
        again = Driver(reply=world.reply, evaluate=world.evaluate)
        assert outcome == again.run(
            Context(seed=seed, n=run["breadth"]),
            **parameters,
            **run,
            prompts=PROMPTS,
            labels=LABELS,
        )
        assert driver.nodes == again.nodes


def test_independent_operations_are_asked_for_together() -> None:
    driver = Driver(reply=World(3).reply)
    driver.run(Context(), depth=3, breadth=3, prompts=PROMPTS, labels=LABELS)
    kinds = [{type(one).__name__ for one in listed} for listed in driver.rounds]
    assert kinds == [{"Generate"}, {"Generate"}, {"Emit"}] * 3 + [{"Emit"}]
    for listed in driver.asked(Generate):
        assert len({text_of(one.state) for one in listed}) == len(listed)


def test_a_prompt_is_judged_once_in_a_search() -> None:
    driver = Driver(reply=lambda text, _: "x\ny" if text.startswith("propose") else "sure")
    prompts = {"propose": "propose {thoughts}", "value": "judge the same thing"}
    driver.run(Context(), depth=3, prompts=prompts, labels=LABELS)
    asked = [text_of(one.state) for listed in driver.asked(Generate) for one in listed]
    assert asked.count("judge the same thing") == 1
    assert {node.value for node in driver.made} == {60.0}


def test_logprobs_weigh_the_labels() -> None:
    chances = {"impossible": 0.1, "likely": 0.3, "sure": 0.2}
    driver = Driver(
        reply=lambda text, _: "x\ny",
        score=lambda text, label: math.log(chances[label]) if text == "judge x" else -math.inf,
    )
    driver.run(Context(), depth=1, evaluate="logprob", prompts=PROMPTS, labels=LABELS)
    values = [node.value for node in driver.made]
    assert values == [pytest.approx((0.3 * 1 + 0.2 * 20) / 0.6), 0.0]
    assert [len(listed) for listed in driver.asked(Score)] == [2]


@pytest.mark.parametrize("how", ["greedy", "sample"])
def test_nothing_to_select_from(how: Selection) -> None:
    assert select([], 3, how, Random(0)) == {}


def test_draws_are_in_proportion() -> None:
    counts = select([1.0, 0.0, 3.0, -5.0], 10_000, "sample", Random(1))
    assert set(counts) == {0, 2}
    assert counts[2] == pytest.approx(7500, abs=300)  # 6.9 standard deviations
    even = select([0.0, -1.0], 10_000, "sample", Random(1))
    assert even[0] == pytest.approx(5000, abs=350)


def test_ties_go_to_the_earliest() -> None:
    assert list(select([1.0, 2.0, 2.0, 1.0, 2.0], 4, "greedy", Random(0))) == [1, 2, 4, 0]
