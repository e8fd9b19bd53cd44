"""What is raised for one sequence fails that one: its neighbours keep their tokens.

The kind: a method of a third party, or one of ours with a mistake, runs in everybody's step.
Drafters (beginning, sizing, drafting, learning, ending), targets, policies of the KV cache, and
controllers, which meet their parts' failures. And what a layer of the model raises in a pass, which
nobody can lay at the door of one sequence: that ends those of the pass alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor

from penstock import SamplingParams
from penstock.decoding.drafting.base import DraftContext, Drafter, Drafting
from penstock.decoding.drafting.draft import Draft
from penstock.decoding.methods import Methods
from penstock.decoding.sampling import Row
from penstock.decoding.search.base import SearchContext
from penstock.decoding.search.operations import Answer, Generate, Outcome
from penstock.decoding.target import Prompt, Target
from penstock.engine.build import Built
from penstock.engine.core.engine import Engine
from penstock.engine.state.request import Request, StepOutput
from penstock.errors import GenerationError
from penstock.kvcache.base import CachePolicy, HeldKeys, Retention
from penstock.registry import Choice, NoParameters
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, prepare
from tests.engine.searches import Run, Steps, search_request, with_controller

PARAMS = SamplingParams(max_tokens=12, seed=3, ignore_eos=True)


class _Breaks(Drafting):
    def __init__(self, where: str) -> None:
        self._where = where

    @property
    def fixed(self) -> bool:
        return True

    def _at(self, place: str) -> None:
        if place == self._where:
            raise ArithmeticError(f"broken in {place}")

    def sizes(self, limit: int, worth: float) -> list[tuple[int, float]]:
        self._at("sizes")
        return [(2, 0.0)] if limit > 1 else []

    def propose(self, size: int, limit: int) -> Draft:
        self._at("propose")
        return Draft([10**9, -5] if self._where == "vocabulary" else [1, 2])

    def learn(self, draft: Draft, predictions: Sequence[int], accepted: Sequence[int]) -> None:
        self._at("learn")

    def finish(self) -> None:
        self._at("finish")


class _BreakingDrafter(Drafter[NoParameters]):
    name = "breaking"
    parameters: type[BaseModel] = NoParameters
    summary = "for tests"

    def __init__(self, where: str) -> None:
        self._where = where

    def start(self, parameters: NoParameters, row: Row, context: DraftContext) -> Drafting:
        if self._where == "start":
            raise ArithmeticError("broken in start")
        return _Breaks(self._where)


class _BreakingTarget(Target[NoParameters]):
    """Breaks for rows of one of two requests; the other one is guided by nothing."""

    name = "breaking"
    parameters: type[BaseModel] = NoParameters
    summary = "for tests"

    def contexts(self, parameters: NoParameters, prompt: Prompt) -> tuple[tuple[int, ...], ...]:
        return ()

    def combine(self, logits_BRV: Tensor, parameters: Sequence[NoParameters]) -> Tensor:
        if any(one is BROKEN for one in parameters):
            raise ArithmeticError("broken in combine")
        return logits_BRV[0]


class _BreakingPolicy(CachePolicy[NoParameters]):
    """Breaks when it scores for the `at`th time."""

    name = "breaking"
    parameters: type[BaseModel] = NoParameters
    summary = "for tests"

    def __init__(self, at: int) -> None:
        self._left = at

    def retention(self, parameters: NoParameters, prompt_tokens: int) -> Retention:
        return Retention(heavy=3, recent=4, interval=3)

    def score(self, held: HeldKeys, parameters: NoParameters) -> Tensor:
        self._left -= 1
        if self._left == 0:
            raise ArithmeticError("broken in score")
        return held.attention


BROKEN, FINE = NoParameters(), NoParameters()


@pytest.fixture
def built(tiny_model: TinyModel) -> Built:
    return build(tiny_model("llama"))


def request_of(built: Built, name: str, prompt: list[int], **changes: Any) -> Request:
    return replace(prepare(built, name, Job(prompt=prompt, params=PARAMS)), **changes)


def run(engine: Engine, requests: Sequence[Request]) -> dict[str, list[StepOutput]]:
    found: dict[str, list[StepOutput]] = {request.id: [] for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for output in engine.step():
            found[output.request_id].append(output)
    return found


def tokens(outputs: Sequence[StepOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def check(built: Built, broken: Request, good: Request, *, told: bool = True) -> None:
    """`broken` fails, and `good` has the tokens that it has alone."""
    alone = tokens(run(built.engine, [replace(good, id="alone")])["alone"])
    assert len(alone) == PARAMS.max_tokens
    found = run(built.engine, [replace(good, id="a"), broken, replace(good, id="z")])
    assert tokens(found["a"]) == tokens(found["z"]) == alone
    failures = [o.failure.code for o in found[broken.id] if o.failure is not None]
    assert failures == (["internal_error"] if told else [])
    assert built.engine.stats().pages_in_use == 0
    assert built.engine.stats().running == built.engine.stats().waiting == 0


@pytest.mark.parametrize(
    "where", ["start", "sizes", "propose", "vocabulary", "learn", "finish"], ids=str
)
def test_a_drafter(built: Built, where: str) -> None:
    drafter = Choice(method=_BreakingDrafter(where), parameters=NoParameters())
    broken = request_of(built, "broken", [5, 6, 7], methods=Methods(drafter=drafter))
    good = request_of(built, "good", [8, 9, 10])
    check(built, broken, good, told=where != "finish")


def test_a_target(built: Built) -> None:
    method = _BreakingTarget()

    def of(parameters: NoParameters) -> dict[str, Any]:
        return {
            "methods": Methods(target=Choice(method=method, parameters=parameters)),
            "combines": True,
        }

    broken = request_of(built, "broken", [5, 6, 7], **of(BROKEN))
    check(built, broken, request_of(built, "good", [8, 9, 10], **of(FINE)))
    check(built, broken, request_of(built, "good", [8, 9, 10]))


def test_the_state_of_a_method(built: Built) -> None:
    """Where a request cannot begin at all."""

    class Policy:
        name = "broken"

        def retention(self, parameters: Any, prompt_length: int) -> None:
            raise ArithmeticError("broken in retention")

    policy: Any = Choice(method=Policy(), parameters=NoParameters())  # type: ignore[type-var]
    broken = request_of(built, "broken", [5, 6, 7], policy=policy)
    check(built, broken, request_of(built, "good", [8, 9, 10]))


@pytest.mark.parametrize("at", [1, 2], ids=["prompt", "answer"])
@pytest.mark.parametrize("decoding", [None, {"jacobi": {"window": 4, "adaptive": False}}])
def test_a_policy_that_scores(built: Built, at: int, decoding: Any) -> None:
    """The first time after the prompt, or when what the answer has added is to be ranked."""
    policy = Choice(method=_BreakingPolicy(at), parameters=NoParameters())
    job = Job(prompt=[5, 6, 7] * 4, params=PARAMS, decoding=decoding)
    broken = replace(prepare(built, "broken", job), policy=policy)
    check(built, broken, request_of(built, "good", [8, 9, 10]))


@pytest.mark.parametrize("catches", [False, True])
def test_a_controller_meets_the_failure_of_its_part(built: Built, *, catches: bool) -> None:
    def body(context: SearchContext) -> Steps:
        poisoned = context.prompt.append((66,))
        try:
            yield [
                Generate(state=context.prompt, max_tokens=4),
                Generate(state=poisoned, max_tokens=4),
            ]
        except GenerationError:
            if not catches:
                raise
            (left,) = yield Generate(state=context.prompt, max_tokens=4)
            return Outcome(answers=(Answer(text=left.text, token_ids=left.token_ids),))
        return Outcome(answers=())

    model: Any = built.loaded.model
    model.embedding = _PoisonedEmbedding(model.embedding)
    searching = with_controller(built, body)
    run = Run(searching, search_request(searching, [5, 6], {"scripted": {}}, ignore_eos=True))
    run.start()
    while built.engine.has_work:
        run.step()
    if catches:
        assert len(run.answers[0].token_ids) == 4
    else:
        assert isinstance(run.error, GenerationError)
        assert run.error.code == "numerical_error"
    run.leave()
    assert built.engine.stats().pages_in_use == 0


class _PoisonedEmbedding(torch.nn.Module):
    """Token 66 is not a number."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self._inner = inner

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self._inner(ids)
        hidden[ids == 66] = torch.nan
        return hidden


class _ForgetfulLayer(torch.nn.Module):
    """Raises from some position on, as a layer does whose tables are too short."""

    def __init__(self, inner: torch.nn.Module, most: int) -> None:
        super().__init__()
        self._inner, self._most = inner, most

    def forward(self, *given: Any, **named: Any) -> Any:
        if int(named["position_ids"].max()) >= self._most:
            raise IndexError("index out of range in self")
        return self._inner(*given, **named)


def forget_from(engine: Engine, position: int) -> None:
    runner: Any = engine.runner
    runner._model = _ForgetfulLayer(runner._model, position)


def test_a_layer_that_raises_ends_the_requests_of_its_pass(tiny_model: TinyModel) -> None:
    built = build(tiny_model("gpt2"))  # which is not fused into one call
    engine = built.engine
    short, long = (request_of(built, name, [5, 6, 7] * n) for name, n in (("s", 1), ("l", 20)))
    alone = tokens(run(engine, [replace(short, id="alone")])["alone"])
    forget_from(engine, 30)
    for _ in range(20):  # more than may fail one after the other
        failed = run(engine, [long])["l"]
        assert [o.failure.code for o in failed if o.failure is not None] == ["internal_error"]
        assert tokens(run(engine, [short])["s"]) == alone
    assert engine.stats().pages_in_use == engine.stats().running == engine.stats().waiting == 0


def test_a_model_that_always_raises_is_no_model(tiny_model: TinyModel) -> None:
    built = build(tiny_model("gpt2"))
    engine = built.engine
    forget_from(engine, 0)
    failed = [run(engine, [request_of(built, str(i), [5, 6, 7])]) for i in range(7)]
    assert all(outputs[0].failure is not None for one in failed for outputs in one.values())
    with pytest.raises(IndexError):
        run(engine, [request_of(built, "last", [5, 6, 7])])
    engine.abort_all()
