"""Best of n: generates several answers to one prompt and returns the best by some measure."""

import math
from collections.abc import Generator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints, model_validator

from penstock.errors import ContextLengthError, RequestError

from ...registry import STRICT
from .base import Controller, SearchContext, SearchLimits
from .budget import Budget
from .operations import (
    Answer,
    BudgetExhausted,
    Emit,
    Evaluate,
    Generate,
    Generated,
    Node,
    Operation,
    Outcome,
)
from .prompts import fill
from .tasks.base import read_vote
from .tasks.generic import Generic

MAX_N = 256
MAX_VOTES = 64
VOTE_TOKENS = 128


class BestOfParameters(BaseModel):
    """`n`: answers that are generated; `rank`: what orders them.

    logprob: the mean logprob of an answer's tokens. vote: the model is shown all answers and asked
    `votes` times for the best. evaluator: the scores of the evaluator named `evaluator`.
    """

    model_config = STRICT

    n: int = Field(default=4, ge=1, le=MAX_N)
    rank: Literal["logprob", "vote", "evaluator"] = "logprob"
    votes: int = Field(default=3, ge=1, le=MAX_VOTES)
    evaluator: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    trace: Literal["none", "summary", "full"] = "summary"
    budget: Budget = Budget()

    @model_validator(mode="after")
    def _agrees(self) -> "BestOfParameters":
        if (self.rank == "evaluator") != (self.evaluator is not None):
            raise ValueError("evaluator belongs to rank evaluator: send both or neither")
        return self


class BestOf(Controller[BestOfParameters]):
    """See the module."""

    name = "best_of"
    parameters = BestOfParameters
    summary = "Best of n: several answers, ranked by probability, votes or an evaluator."

    def check(self, parameters: BestOfParameters, n: int, limits: SearchLimits) -> None:
        """See `Controller`."""
        if n > parameters.n:
            raise RequestError(
                f"n is {n}, but decoding.best_of.n is {parameters.n}, which is how many answers "
                "are generated; lower n or raise the other",
                param="n",
                code="invalid_parameter",
            )
        thoughts = parameters.budget.thoughts or limits.budget.thoughts
        if thoughts is not None and parameters.n > thoughts:
            raise RequestError(
                f"decoding.best_of.n is {parameters.n}, but the budget allows {thoughts} thoughts; "
                "lower it",
                param="decoding.best_of.n",
                code="invalid_parameter",
            )
        name = parameters.evaluator
        if name is not None and name not in limits.evaluators:
            known = ", ".join(sorted(limits.evaluators)) or "none"
            raise RequestError(
                f"decoding.best_of.evaluator: there is no evaluator {name!r}; this server has: "
                f"{known}",
                param="decoding.best_of.evaluator",
                code="unknown_evaluator",
            )

    def budget(self, parameters: BestOfParameters) -> Budget:
        """See `Controller`."""
        return parameters.budget

    def trace(self, parameters: BestOfParameters) -> Literal["none", "summary", "full"]:
        """See `Controller`."""
        return parameters.trace

    def run(
        self, parameters: BestOfParameters, context: SearchContext
    ) -> Generator[Operation | list[Operation], Any, Outcome]:
        """See `Controller`."""
        generated: tuple[Generated, ...] = ()
        values: list[float] = []
        exhausted = False
        try:
            generated = yield Generate(
                state=context.prompt,
                count=parameters.n,
                max_tokens=context.answer_tokens,
                logprobs=parameters.rank == "logprob",
            )
            values = yield from self._values(parameters, context, generated)
        except BudgetExhausted as error:
            exhausted = True
            generated = generated or error.results or ()
            values = [_mean_logprob(one) for one in generated]
        except ContextLengthError:  # the voting prompt with all answers is too long
            exhausted = True
            values = [0.0] * len(generated)
        order = sorted(range(len(generated)), key=lambda i: -values[i])
        chosen = order[: context.n]
        yield Emit(
            nodes=tuple(
                Node(
                    id=i + 1,
                    parent=None,
                    depth=1,
                    text=one.text,
                    value=None if exhausted or values[i] == -math.inf else values[i],
                    status="answer" if i in chosen else "dropped",
                )
                for i, one in enumerate(generated)
            )
        )
        return Outcome(answers=tuple(_answer(generated[i], values[i]) for i in chosen))

    def _values(
        self, parameters: BestOfParameters, context: SearchContext, found: tuple[Generated, ...]
    ) -> Generator[Operation | list[Operation], Any, list[float]]:
        texts = tuple(one.text for one in found)
        if parameters.evaluator is not None:
            scores = yield Evaluate(
                name=parameters.evaluator, problem=context.problem, candidates=texts
            )
            return list(scores)
        if parameters.rank == "vote":
            votes = yield Generate(
                state=context.ask(_ballot(context.problem, texts)),
                count=parameters.votes,
                max_tokens=VOTE_TOKENS,
                guided=False,
            )
            named = [read_vote(vote.text, len(texts)) for vote in votes]
            return [float(named.count(place)) for place in range(len(texts))]
        return [_mean_logprob(one) for one in found]


def _mean_logprob(one: Generated) -> float:
    """Mean logprob; minus infinity for an answer without tokens, where rules left none."""
    return sum(one.logprobs) / len(one.logprobs) if one.logprobs else -math.inf


def _ballot(problem: str, texts: tuple[str, ...]) -> str:
    template = Generic.defaults.prompts.vote
    assert template is not None
    numbered = "\n\n".join(f"{place}. {text}" for place, text in enumerate(texts, start=1))
    return fill(template, {"problem": problem, "candidates": numbered})


def _answer(generated: Generated, value: float) -> Answer:
    return Answer(
        text=generated.text,
        finish_reason=generated.finish_reason,
        stop_reason=generated.stop_reason,
        token_ids=generated.token_ids,
        value=value,
    )


BEST_OF = BestOf()
