"""The tree that a search grows, and the choice of answers from it."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .base import SearchContext
from .operations import (
    Answer,
    Emit,
    FinishReason,
    Free,
    Generated,
    Node,
    NodeStatus,
    Operation,
)
from .parameters import Plan
from .prompts import fill
from .tasks.base import Puzzle, Thoughts

R = TypeVar("R")
Asking = Generator[Operation | list[Operation], Any, R]
"""A part of a search: yields operations, receives their results, returns R."""


@dataclass(slots=True, kw_only=True, eq=False)
class Thought:
    """A node. `path`: the texts from the first level to its own; the root's is empty, its id 0.

    `generated`: the generation that it came from, if it was sampled. `ended`: no thought may
    follow. `pruned`: its value is too low to expand it.
    """

    id: int
    parent: "Thought | None"
    path: Thoughts
    value: float
    generated: Generated | None = None
    ended: bool = False
    pruned: bool = False

    @property
    def depth(self) -> int:
        """Thoughts on its path."""
        return len(self.path)

    def node(self, status: NodeStatus) -> Node:
        """The node as the caller sees it."""
        return Node(
            id=self.id,
            parent=self.parent.id if self.parent is not None and self.parent.id else None,
            depth=self.depth,
            text=self.path[-1],
            value=self.value,
            status=status,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Branch:
    """A candidate that may become a child of `parent`."""

    parent: Thought
    path: Thoughts
    confidence: float | None = None
    generated: Generated | None = None


class Tree:
    """The state of one search. `leaves`: thoughts that may be the answer, in the order found.

    `origin`: the prompt that sampled thoughts continue.
    """

    def __init__(self, plan: Plan, context: SearchContext, puzzle: Puzzle) -> None:
        self.plan = plan
        self.context = context
        self.puzzle = puzzle
        self.root = Thought(id=0, parent=None, path=(), value=0.0)
        self.leaves: list[Thought] = []
        self.depth = plan.parameters.depth or puzzle.depth
        sample = plan.prompts.sample if plan.parameters.generate == "sample" else None
        self.origin = context.ask(self.prompt(sample, ())) if sample else context.prompt
        self._made = 0
        bounds = (plan.thoughts, context.budget.thoughts)
        self._most = min((bound for bound in bounds if bound is not None), default=None)

    def room(self, wanted: int) -> int:
        """How many of `wanted` further nodes the budget allows."""
        return wanted if self._most is None else min(wanted, self._most - self._made)

    def prompt(self, template: str, path: Thoughts, state: str | None = None) -> str:
        """A prompt about a path. `state`: text for that field; None: the state of the path."""
        return fill(
            template,
            {
                "problem": self.context.problem,
                "thoughts": "\n".join(path),
                "state": self.puzzle.state(path) if state is None else state,
            },
        )

    def add(self, branch: Branch, value: float) -> Thought:
        """Turn a candidate into a node."""
        assert self.room(1) == 1
        self._made += 1
        return Thought(
            id=self._made,
            parent=branch.parent,
            path=branch.path,
            value=value,
            generated=branch.generated,
            ended=self._ended(branch),
        )

    def verified(self, leaf: Thought) -> bool:
        """Whether a leaf is known to be right."""
        return leaf.ended and self.puzzle.right(leaf.path) is True

    def solves(self, leaf: Thought) -> bool:
        """Whether a leaf has ended, is not pruned and is not known to be wrong."""
        return leaf.ended and not leaf.pruned and self.puzzle.right(leaf.path) is not False

    def conclude(self, reason: FinishReason) -> list[tuple[Thought, Answer]]:
        """The best leaves and their answers, best first; if there is no leaf, the root."""
        verified = [leaf for leaf in self.leaves if self.verified(leaf)]
        sound = [leaf for leaf in self.leaves if not leaf.pruned]
        pool = verified or sound or self.leaves or [self.root]
        answers: dict[str, tuple[Thought, Answer]] = {}
        for leaf in sorted(pool, key=self._rank, reverse=True):
            answer = self._answer(leaf, reason)
            answers.setdefault(answer.text, (leaf, answer))
            if len(answers) == self.context.n:
                break
        return list(answers.values())

    def _rank(self, leaf: Thought) -> tuple[bool, float, bool, float]:
        done = leaf.ended or leaf.depth >= self.depth
        return (self.solves(leaf), self.puzzle.progress(leaf.path), done, leaf.value)

    def _ended(self, branch: Branch) -> bool:
        made = branch.generated
        if made is not None:
            written = made.finish_reason == "stop" and made.stop_reason not in self.plan.stop
            return written or (not self.plan.task.verbatim and self.puzzle.finished(branch.path))
        return self.puzzle.finished(branch.path)

    def _answer(self, leaf: Thought, reason: FinishReason) -> Answer:
        made = leaf.generated
        if made is None or not self.plan.task.verbatim:
            text = self.puzzle.answer(leaf.path)
            return Answer(text=text, finish_reason=reason, value=leaf.value if leaf.id else None)
        start = len(self.origin.ids)
        text = self.context.decode(made.state.ids[start:])
        stop = made.stop_reason
        if isinstance(stop, str):
            behind = made.state.ids[: len(made.state.ids) - len(made.token_ids)]
            end = text.find(stop, len(self.context.decode(behind[start:])))
            text = text[:end] if end >= 0 else text
        return Answer(
            text=text,
            finish_reason=made.finish_reason if reason == "stop" else reason,
            stop_reason=None if stop in self.plan.stop else stop,
            token_ids=made.state.ids[start:],
            value=leaf.value,
        )


def show(nodes: Sequence[Node], dead: Iterable[Thought | Branch]) -> Asking[None]:
    """Emit nodes, and free the states of sampled thoughts that will not be continued."""
    states = tuple(one.generated.state for one in dead if one.generated is not None)
    operations: list[Operation] = []
    if nodes:
        operations.append(Emit(nodes=tuple(nodes)))
    if states:
        operations.append(Free(states=states))
    if operations:
        yield operations
