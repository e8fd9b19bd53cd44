"""Evaluators: functions that score candidates in place of the model, chosen by name.

A request can only name one: packages register them under the entry point
`penstock.evaluators`, and operators configure addresses (server/evaluators.py).
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence

from ...decoding.search.operations import Evaluate
from ...errors import EvaluatorError
from ...plugins import plugins

Function = Callable[[str, Sequence[str]], Sequence[float]]
"""Scores of candidate texts for a problem, one each, higher is better; any thread may call it."""
Evaluator = Callable[[str, Sequence[str]], Awaitable[Sequence[float]]]


def registered() -> dict[str, Function]:
    """The functions that installed packages register.

    Raises:
        ConfigurationError: a package cannot be imported, or two use the same name.
    """
    return {plugin.name: plugin.value for plugin in plugins("penstock.evaluators")}


def in_threads(functions: Mapping[str, Function]) -> dict[str, Evaluator]:
    """The same functions for an event loop: each call runs in a thread."""

    def wrapped(function: Function) -> Evaluator:
        async def evaluate(problem: str, candidates: Sequence[str]) -> Sequence[float]:
            return await asyncio.to_thread(function, problem, candidates)

        return evaluate

    return {name: wrapped(function) for name, function in functions.items()}


def checked(operation: Evaluate, scores: Sequence[float]) -> tuple[float, ...]:
    """The scores, checked to be one finite number for each candidate.

    Raises:
        EvaluatorError: they are not.
    """
    numbers = tuple(map(float, scores))
    if len(numbers) != len(operation.candidates) or not all(map(math.isfinite, numbers)):
        raise EvaluatorError(
            f"the evaluator {operation.name!r} did not give one finite number for each of "
            f"{len(operation.candidates)} candidates"
        )
    return numbers
