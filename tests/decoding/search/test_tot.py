"""The controller as a whole: what it refuses, its budgets, its answers."""

from random import Random
from typing import Any

import pytest

from penstock.decoding.search.base import SearchLimits
from penstock.decoding.search.budget import Budget
from penstock.decoding.search.operations import Generate, Outcome, State
from penstock.decoding.search.parameters import TotParameters
from penstock.decoding.search.tot import TOT
from penstock.errors import ContextLengthError, RequestError
from penstock.models.nano.abilities import game24
from penstock.models.nano.abilities.arithmetic24 import judge_state, puzzles, spell, steps
from tests.decoding.search.scripted import Context, Driver, ids, text_of
from tests.decoding.search.world import LABELS, PROMPTS, World

LIMITS = SearchLimits(
    budget=Budget(thoughts=500, sequences=16, tokens=10_000, seconds=60.0),
    evaluators=frozenset({"reward"}),
)
CLUES = "\n".join(f"{way}{line}. clue" for way in "hv" for line in range(1, 6))
RUNS: list[Any] = [
    pytest.param({"depth": 3, "breadth": 3}, id="propose"),
    pytest.param({"depth": 3, "generate": "sample", "generate_samples": 3}, id="sample"),
    pytest.param({"depth": 2, "evaluate": "vote", "select": "sample"}, id="vote"),
    pytest.param({"depth": 2, "evaluate": "logprob"}, id="logprob"),
    pytest.param({"depth": 2, "evaluate": "external", "evaluator": "reward"}, id="external"),
    pytest.param({"algorithm": "dfs", "depth": 3}, id="dfs"),
    pytest.param(
        {"algorithm": "dfs", "depth": 3, "generate": "sample", "generate_samples": 2},
        id="dfs-sample",
    ),
    pytest.param({"task": "game24", "prompts": {}, "labels": None}, id="game24"),
    pytest.param(
        {"task": "crosswords", "prompts": {}, "labels": None, "depth": 2}, id="crosswords"
    ),
]


def problem_of(fields: dict[str, Any]) -> str:
    return {"game24": "1 2 3 4", "crosswords": CLUES}.get(fields.get("task", ""), "problem")


def driver_of(fields: dict[str, Any], **more: Any) -> Driver:
    world = World(7)
    reply = {"game24": perfect, "crosswords": puzzler}.get(fields.get("task", ""), world.reply)
    return Driver(reply=reply, score=lambda _, label: -len(label), evaluate=len, **more)


def perfect(text: str, choice: int) -> str:
    """What the embedded model was taught to answer."""
    numbers = tuple(map(int, text.partition("\n")[0].partition(": ")[2].split()))
    if text == game24.JUDGE_PROMPT.format(numbers=spell(numbers)):
        return judge_state(numbers)
    assert text == game24.PROPOSE_PROMPT.format(numbers=spell(numbers))
    return "\n".join(step.line for step in steps(numbers))


def puzzler(text: str, choice: int) -> str:
    if "Which words" not in text:
        return "maybe"
    return "\n".join(f"h{line}. apple (high)" for line in range(1, 6))


def run(driver: Driver, fields: dict[str, Any], **context: Any) -> Outcome:
    request = Context(problem=problem_of(fields), **context)
    return driver.run(request, **{"prompts": PROMPTS, "labels": LABELS, **fields})


@pytest.mark.parametrize(
    ("fields", "n", "param", "message"),
    [
        ({"breadth": 2}, 3, "breadth", "fewer than the n = 3"),
        ({"evaluate": "external", "evaluator": "x"}, 1, "evaluator", "this server has: reward"),
    ],
)
def test_what_cannot_work_is_refused(
    fields: dict[str, Any], n: int, param: str, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        TOT.check(TotParameters.model_validate(fields), n, LIMITS)
    assert caught.value.param == f"decoding.tot.{param}"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"task": "crosswords"},
        {"evaluate": "logprob", "evaluate_samples": 256},
        {"evaluate": "registered", "evaluator": "reward"},
        {"algorithm": "dfs", "breadth": 1},
    ],
)
def test_what_can_work_is_not(fields: dict[str, Any]) -> None:
    parameters = TotParameters.model_validate(fields)
    TOT.check(parameters, 5 if "breadth" not in fields else 2, LIMITS)
    assert TOT.budget(parameters) == parameters.budget
    assert TOT.trace(parameters) == "summary"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"evaluate": "external"}, "send the evaluator's name"),
        ({"evaluator": "reward"}, "leave the evaluator out"),
        ({"depth": 33}, "less than or equal to 32"),
        ({"breadth": 0}, "greater than or equal to 1"),
        ({"generate_samples": 257}, "less than or equal to 256"),
        ({"prune_below": float("inf")}, "prune_below"),
        ({"labels": {}}, "at least 1 item"),
        ({"labels": {"sure": float("nan")}}, "sure"),
        ({"labels": {"sure": 1e7}}, "1000000"),
        ({"labels": {"sure": 1.0, "Sure ": 2.0}}, "rename one"),
        ({"labels": {str(i): 1.0 for i in range(33)}}, "at most 32 items"),
        ({"labels": {"x" * 65: 1.0}}, "at most 64 characters"),
        ({"prompts": {"value": "{problem.__class__}"}}, "no field"),
        ({"prompts": {"solve": "x"}}, "not permitted"),
        ({"task": "chess"}, "generic"),
        ({"code": "x"}, "not permitted"),
    ],
)
def test_parameters_are_bounded(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TotParameters.model_validate(fields)


@pytest.mark.parametrize("fields", RUNS)
def test_a_budget_that_ends_anywhere_leaves_the_best_so_far(fields: dict[str, Any]) -> None:
    whole = driver_of(fields)
    finished = run(whole, fields)
    assert finished.answers[0].finish_reason in ("stop", "length")
    for at in range(len(whole.rounds)):
        driver = driver_of(fields, exhaust_at=at)  # asserts that it asks for nothing any more
        outcome = run(driver, fields, n=2)
        assert 1 <= len(outcome.answers) <= 2
        assert {answer.finish_reason for answer in outcome.answers} == {"length"}
        assert all(driver.path(node) for node in driver.made)  # whose parents were shown, too


@pytest.mark.parametrize("most", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("fields", RUNS)
def test_no_more_thoughts_than_allowed(fields: dict[str, Any], most: int) -> None:
    free = driver_of(fields)
    run(free, fields)
    for where in ("request", "server"):
        driver = driver_of(fields)
        more = {"budget": {"thoughts": most}} if where == "request" else {}
        budget = Budget(thoughts=most) if where == "server" else Budget()
        outcome = run(driver, {**fields, **more}, budget=budget)
        assert len(driver.made) <= most
        assert [node.id for node in driver.made] == list(range(1, len(driver.made) + 1))
        if len(free.made) > most:
            assert outcome.answers[0].finish_reason == "length"


@pytest.mark.parametrize("seed", range(10))
def test_one_state_and_one_sample_are_a_chain_of_completions(seed: int) -> None:
    rng = Random(seed)
    words = ["a b", "", "c\nd", "\n", "Answer: x", "e"]
    text = "\n".join(rng.choices(words, k=8))

    def reply(before: str, choice: int) -> str:
        if before.startswith("judge"):
            return rng.choice(["sure", "impossible", "?"])
        written = before.removeprefix("problem")
        assert text.startswith(written)
        return text[len(written) :]

    depth = rng.randint(1, 9)
    driver = Driver(reply=reply)
    outcome = driver.run(
        Context(), generate="sample", breadth=1, depth=depth, prompts=PROMPTS, labels=LABELS
    )
    chain = [
        one
        for listed in driver.asked(Generate)
        for one in listed
        if not text_of(one.state).startswith("judge")
    ]
    lines = text.split("\n")[:depth]
    assert len(chain) == len(lines)
    ends = [len("\n".join(lines[:i])) + (i > 0) for i in range(len(lines))]
    assert [one.state.ids for one in chain] == [ids("problem" + text[:end]) for end in ends]
    assert {(one.count, one.stop, one.keep, one.guided) for one in chain} == {
        (1, ("\n",), True, True)
    }
    (answer,) = outcome.answers
    assert answer.text == "\n".join(lines)
    assert answer.token_ids is not None
    assert text.startswith("".join(map(chr, answer.token_ids)))
    assert answer.finish_reason == "stop"


def test_a_thought_that_is_cut_is_continued_where_it_was() -> None:
    driver = Driver(reply=lambda text, _: "sure" if text.startswith("judge") else "abcdefgh")
    outcome = driver.run(
        Context(), generate="sample", breadth=1, depth=3, thought_tokens=2, prompts=PROMPTS
    )
    assert outcome.answers[0].text == "ababab"
    assert outcome.answers[0].finish_reason == "length"


def test_the_requests_own_bound_goes_first() -> None:
    driver = Driver(reply=World(1).reply)
    driver.run(
        Context(max_tokens=99),
        depth=1,
        thought_tokens=7,
        judge_tokens=9,
        prompts=PROMPTS,
        labels=LABELS,
    )
    propose, judge = driver.asked(Generate)
    assert {(one.max_tokens, one.guided) for one in propose} == {(99, True)}
    assert {(one.max_tokens, one.guided) for one in judge} == {(9, False)}


@pytest.mark.parametrize("algorithm", ["bfs", "dfs"])
def test_game24_is_solved_by_a_model_that_plays_right(algorithm: str) -> None:
    for numbers in puzzles("held_out")[:30]:
        if judge_state(numbers) == "impossible":
            continue
        driver = Driver(reply=perfect)
        outcome = driver.run(
            Context(problem=spell(numbers), max_tokens=5000),
            task="game24",
            algorithm=algorithm,
            budget={"thoughts": 1000},
        )
        (answer,) = outcome.answers
        assert game24.grade_solution(numbers, answer.text) == {"solved": 1.0}
        assert answer.text.rpartition("\n")[2].startswith("Answer: ")
        path = [node for node in driver.nodes if node.status == "answer"]
        assert [node.depth for node in path] == [1, 2, 3]
        assert answer.text.split("\n")[:3] == [node.text for node in path]


def test_a_right_solution_is_the_answer_even_where_the_judges_drop_it() -> None:
    driver = Driver(reply=perfect, evaluate=lambda text: -float("(left: 24)" in text))
    outcome = driver.run(
        Context(problem="2 3 4 6", max_tokens=5000),
        task="game24",
        evaluate="external",
        evaluator="reward",
        breadth=50,
    )
    assert game24.grade_solution((2, 3, 4, 6), outcome.answers[0].text) == {"solved": 1.0}
    (last,) = (node for node in driver.nodes if node.status == "answer" and node.depth == 3)
    assert [node.status for node in driver.nodes if node.id == last.id] == ["dropped", "answer"]


def test_game24_says_that_there_is_no_answer() -> None:
    driver = Driver(reply=perfect)
    outcome = driver.run(Context(problem="1 1 1 1", max_tokens=5000, n=3), task="game24")
    assert [answer.text for answer in outcome.answers] == ["Answer: none was found"]
    assert all(node.status != "answer" for node in driver.nodes)


def test_several_answers_come_best_first_and_differ() -> None:
    driver = Driver(reply=perfect)
    outcome = driver.run(Context(problem="2 3 4 6", max_tokens=5000, n=5), task="game24")
    texts = [answer.text for answer in outcome.answers]
    assert len(texts) == len(set(texts)) > 1
    for text in texts:
        assert game24.grade_solution((2, 3, 4, 6), text) == {"solved": 1.0}


@pytest.mark.parametrize("task", ["game24", "crosswords"])
def test_a_problem_of_another_kind_is_refused_at_once(task: str) -> None:
    with pytest.raises(RequestError) as caught:
        Driver().run(Context(problem="What is love?"), task=task)
    assert caught.value.param == "prompt"


class Short(Context):
    """A model whose context holds only the first prompts."""

    def ask(self, text: str) -> State:
        if text.count("\n") > 0:
            raise ContextLengthError("too long", limit_tokens=8)
        return super().ask(text)


def test_prompts_that_outgrow_the_context_end_the_search() -> None:
    outcome = Driver(reply=World(2).reply).run(Short(), depth=9, prompts=PROMPTS, labels=LABELS)
    assert outcome.answers[0].finish_reason == "length"
    assert outcome.answers[0].text
    long = {**PROMPTS, "propose": "one\ntwo"}
    with pytest.raises(ContextLengthError):
        Driver().run(Short(), prompts=long, labels=LABELS)


@pytest.mark.parametrize("fields", RUNS)
def test_a_model_that_says_nothing_still_gets_an_answer(fields: dict[str, Any]) -> None:
    driver = driver_of(fields)
    driver.reply = lambda text, choice: ""
    outcome = run(driver, fields)
    assert len(outcome.answers) == 1
