"""Self-consistency (Wang et al. 2022, arXiv:2203.11171) as a controller of Penstock.

Several answers are sampled; the result that most of them arrive at is taken.
"""

import re
from collections import Counter
from collections.abc import Generator
from typing import Any, Literal

from pydantic import BaseModel, Field

from penstock.decoding.search.base import Controller, SearchContext, SearchLimits
from penstock.decoding.search.budget import Budget
from penstock.decoding.search.operations import (
    Answer,
    BudgetExhausted,
    Emit,
    Generate,
    Generated,
    Node,
    Operation,
    Outcome,
)
from penstock.errors import RequestError
from penstock.registry import STRICT


class SelfConsistencyParameters(BaseModel):
    """`samples`: answers that vote. `result`: what of an answer counts as its result."""

    model_config = STRICT

    samples: int = Field(default=8, ge=2, le=256)
    result: Literal["last_number", "last_line"] = "last_number"
    budget: Budget = Budget()


class SelfConsistency(Controller[SelfConsistencyParameters]):
    """Takes the first answer whose result is the most frequent one."""

    name = "self_consistency"
    parameters = SelfConsistencyParameters
    summary = "Several answers; the one whose result most of them share."

    def check(self, parameters: SelfConsistencyParameters, n: int, limits: SearchLimits) -> None:
        """See `Controller`."""
        if n != 1:
            raise RequestError(
                f"n is {n}, and decoding.self_consistency gives one answer; leave n out",
                param="n",
                code="invalid_parameter",
            )

    def budget(self, parameters: SelfConsistencyParameters) -> Budget:
        """See `Controller`."""
        return parameters.budget

    def trace(self, parameters: SelfConsistencyParameters) -> Literal["full"]:
        """Every vote is shown."""
        return "full"

    def run(
        self, parameters: SelfConsistencyParameters, context: SearchContext
    ) -> Generator[Operation | list[Operation], Any, Outcome]:
        """See `Controller`."""
        found: tuple[Generated, ...] = ()
        try:
            found = yield Generate(
                state=context.prompt, count=parameters.samples, max_tokens=context.answer_tokens
            )
        except BudgetExhausted as error:
            found = error.results or ()
        results = [_result(one.text, parameters.result) for one in found]
        votes = Counter(result for result in results if result is not None)
        shares = [votes[result] / len(found) if result is not None else 0.0 for result in results]
        best = max(range(len(found)), key=shares.__getitem__, default=None)
        yield Emit(
            nodes=tuple(
                Node(
                    id=i + 1,
                    parent=None,
                    depth=1,
                    text=one.text,
                    value=shares[i],
                    status="answer" if i == best else "dropped",
                )
                for i, one in enumerate(found)
            )
        )
        if best is None:
            return Outcome(answers=())
        chosen = found[best]
        answer = Answer(
            text=chosen.text,
            finish_reason=chosen.finish_reason,
            stop_reason=chosen.stop_reason,
            token_ids=chosen.token_ids,
            value=shares[best],
        )
        return Outcome(answers=(answer,))


def _result(text: str, kind: Literal["last_number", "last_line"]) -> str | None:
    if kind == "last_number":
        numbers = re.findall(r"-?\d+(?:[.,]\d+)*", text)
        return numbers[-1].replace(",", "") if numbers else None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else None


SELF_CONSISTENCY = SelfConsistency()
