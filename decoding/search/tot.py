"""Tree of thoughts (Yao et al. 2023, arXiv:2305.10601): `tot`.

Partial solutions are generated, judged and selected as `TotParameters` says: breadth first in
bfs.py, depth first in dfs.py. A sampled thought continues the tokens of the one before it; nothing
is tokenised again.
"""

from collections.abc import Generator, Mapping
from typing import Any

from ...errors import ContextLengthError, RequestError
from ..constraint.fields import StructuredOutputs
from .base import Controller, SearchContext, SearchLimits
from .bfs import breadth_first
from .budget import Budget
from .dfs import depth_first
from .operations import BudgetExhausted, FinishReason, Operation, Outcome
from .parameters import Plan, TotParameters, Trace
from .tree import Asking, Thought, Tree, show


class Tot(Controller[TotParameters]):
    """See the module."""

    name = "tot"
    parameters = TotParameters
    summary = "Tree of thoughts: continues, judges and selects partial solutions, then answers."

    def check(self, parameters: TotParameters, n: int, limits: SearchLimits) -> None:
        """See `Controller`."""
        plan = Plan(parameters)
        if plan.algorithm == "bfs" and n > parameters.breadth:
            raise self._refusal(
                "breadth", f"is {parameters.breadth}, fewer than the n = {n} answers; raise it"
            )
        if parameters.evaluator is not None and parameters.evaluator not in limits.evaluators:
            known = ", ".join(sorted(limits.evaluators)) or "none"
            raise self._refusal(
                "evaluator", f"{parameters.evaluator!r} is unknown; this server has: {known}"
            )

        at_once = parameters.budget.sequences or limits.budget.sequences
        asked = {"generate_samples": plan.generate_samples}
        if parameters.evaluate in ("value", "vote"):
            asked["evaluate_samples"] = plan.evaluate_samples
        for field, count in asked.items():
            if at_once is not None and count > at_once:
                raise self._refusal(
                    field, f"is {count}, above the {at_once} sequences that may run at once"
                )

    def budget(self, parameters: TotParameters) -> Budget:
        """See `Controller`."""
        return parameters.budget

    def composes(self, parameters: TotParameters) -> bool:
        """See `Controller`."""
        return not (Plan(parameters).task.verbatim and parameters.generate == "sample")

    def forms(self, parameters: TotParameters) -> Mapping[str, StructuredOutputs]:
        """See `Controller`."""
        return parameters.forms.given()

    def trace(self, parameters: TotParameters) -> Trace:
        """How much of the tree the answer shows."""
        return parameters.trace

    def run(
        self, parameters: TotParameters, context: SearchContext
    ) -> Generator[Operation | list[Operation], Any, Outcome]:
        """See `Controller`.

        Raises:
            RequestError: the task cannot work on this prompt.
        """
        plan = Plan(parameters)
        tree = Tree(plan, context, plan.task.start(context.problem))
        search = breadth_first if plan.algorithm == "bfs" else depth_first
        try:
            reason = yield from search(tree)
            return (yield from _conclude(tree, reason))
        except BudgetExhausted:
            return (yield from _conclude(tree, "length"))
        except ContextLengthError:
            if not tree.leaves:
                raise
            return (yield from _conclude(tree, "length"))

    def _refusal(self, field: str, what: str) -> RequestError:
        where = f"decoding.{self.name}.{field}"
        return RequestError(f"{where} {what}", param=where, code="invalid_parameter")


def _conclude(tree: Tree, reason: FinishReason) -> Asking[Outcome]:
    """Show the nodes of the answers, and return the answers."""
    answers = tree.conclude(reason)
    nothing = tree.puzzle.answer(())
    path: dict[int, Thought] = {}
    for leaf, answer in answers:
        one: Thought | None = leaf if answer.text != nothing else None
        while one is not None and one.id:
            path[one.id] = one
            one = one.parent
    yield from show([path[key].node("answer") for key in sorted(path)], ())
    return Outcome(answers=tuple(answer for _, answer in answers))


TOT = Tot()
