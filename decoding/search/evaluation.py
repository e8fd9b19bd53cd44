"""Values candidates: by labels, probabilities of labels, votes, or an evaluator."""

import math
from collections.abc import Sequence
from typing import Final

from .operations import Evaluate, Generate, Generated, Score
from .prompts import fill
from .tasks.base import Thoughts, read_label, read_vote
from .tree import Asking, Branch, Tree

LARGEST: Final = 1e9
"""Bound on an evaluator's scores, in both directions."""


class Judge:
    """Values the candidates of one search; the value of a prompt is asked for only once."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._known: dict[str, float] = {}

    def judge(self, branches: Sequence[Branch]) -> Asking[list[float]]:
        """A value for each candidate; of equal ones all but the first get 0."""
        distinct = list(dict.fromkeys(branch.path for branch in branches))
        if not distinct:
            return []
        match self.tree.plan.parameters.evaluate:
            case "value" | "logprob":
                values = yield from self._states(distinct)
            case "vote":
                values = yield from self._vote(distinct)
            case "external" | "registered":
                values = yield from self._ask_evaluator(distinct)
        left = dict(zip(distinct, values, strict=True))
        return [left.pop(branch.path, 0.0) for branch in branches]

    def _states(self, paths: Sequence[Thoughts]) -> Asking[list[float]]:
        tree, template = self.tree, self.tree.plan.prompts.value
        assert template is not None
        certain = [self._certain(path) for path in paths]
        prompts = [
            [tree.prompt(template, path, state) for state in tree.puzzle.judged(path)]
            if known is None
            else []
            for path, known in zip(paths, certain, strict=True)
        ]
        wanted = dict.fromkeys(prompt for some in prompts for prompt in some)
        new = [prompt for prompt in wanted if prompt not in self._known]
        if new:
            sampled = tree.plan.parameters.evaluate == "value"
            self._known |= yield from (self._labels(new) if sampled else self._logprobs(new))
        return [
            tree.puzzle.combine([self._known[prompt] for prompt in some])
            if known is None
            else known
            for some, known in zip(prompts, certain, strict=True)
        ]

    def _certain(self, path: Thoughts) -> float | None:
        plan = self.tree.plan
        label = self.tree.puzzle.verdict(path)
        if label is None or label not in plan.labels:
            return None
        times = plan.evaluate_samples if plan.parameters.evaluate == "value" else 1
        return times * plan.labels[label]

    def _labels(self, prompts: Sequence[str]) -> Asking[dict[str, float]]:
        """For each prompt, the sum of the values of the labels answered; other answers add 0."""
        plan = self.tree.plan
        results = yield from self._answers(prompts, "value")
        values: dict[str, float] = {}
        for prompt, answers in zip(prompts, results, strict=True):
            labels = [read_label(answer, plan.labels) for answer in answers]
            counted = [value * labels.count(label) for label, value in plan.labels.items()]
            values[prompt] = sum(counted)
        return values

    def _logprobs(self, prompts: Sequence[str]) -> Asking[dict[str, float]]:
        """For each prompt, the mean of the labels' values, weighted by their probabilities."""
        context, labels = self.tree.context, self.tree.plan.labels
        texts = tuple(context.encode(label) for label in labels)
        results: list[tuple[float, ...]] = yield [
            Score(state=context.ask(prompt), continuations=texts) for prompt in prompts
        ]
        values = tuple(labels.values())
        return {
            prompt: _expected(logprobs, values)
            for prompt, logprobs in zip(prompts, results, strict=True)
        }

    def _vote(self, paths: Sequence[Thoughts]) -> Asking[list[float]]:
        """The number of votes for each candidate."""
        tree, template = self.tree, self.tree.plan.prompts.vote
        assert template is not None
        numbered = [f"{i}. " + "\n".join(path) for i, path in enumerate(paths, start=1)]
        fields = {"problem": tree.context.problem, "candidates": "\n\n".join(numbered)}
        (answers,) = yield from self._answers([fill(template, fields)], "vote")
        votes = [read_vote(answer, len(paths)) for answer in answers]
        return [float(votes.count(place)) for place in range(len(paths))]

    def _ask_evaluator(self, paths: Sequence[Thoughts]) -> Asking[list[float]]:
        evaluator = self.tree.plan.parameters.evaluator
        assert evaluator is not None
        results: list[tuple[float, ...]] = yield [
            Evaluate(
                name=evaluator,
                problem=self.tree.context.problem,
                candidates=tuple("\n".join(path) for path in paths),
            )
        ]
        return [_bounded(value) for value in results[0]]

    def _answers(self, prompts: Sequence[str], form: str) -> Asking[list[list[str]]]:
        results: list[tuple[Generated, ...]] = yield [
            Generate(
                state=self.tree.context.ask(prompt),
                count=self.tree.plan.evaluate_samples,
                max_tokens=self.tree.plan.judge_tokens,
                guided=False,
                form=form,
            )
            for prompt in prompts
        ]
        read = self.tree.plan.parameters.forms.read
        return [[read(form, answer.text) for answer in answers] for answers in results]


def _expected(logprobs: Sequence[float], values: Sequence[float]) -> float:
    top = max(logprobs, default=-math.inf)
    if not math.isfinite(top):
        return 0.0
    shares = [math.exp(logprob - top) for logprob in logprobs]
    weighed = sum(share * value for share, value in zip(shares, values, strict=True))
    return weighed / sum(shares)


def _bounded(value: float) -> float:
    return 0.0 if math.isnan(value) else min(max(value, -LARGEST), LARGEST)
