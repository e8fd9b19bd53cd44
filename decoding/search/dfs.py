"""Depth-first search: the best child first, with backtracking where a state is hopeless.

Yao et al. 2023 (arXiv:2305.10601), algorithm 2, with the bounds of the paper's crosswords: children
of a state, depth, and nodes in all are limited. If proposals carry a confidence, it orders the
children, and only those that may be visited are judged; otherwise all are judged, and their values
order them. Children are judged together, before the first is visited, so that they share a batch;
this changes no result.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from .evaluation import Judge
from .generation import expand
from .operations import FinishReason
from .tasks.base import Thoughts
from .tree import Asking, Branch, Thought, Tree, show

MOST_JUDGED: Final = 512
"""Children of one state that are judged; a model that repeats itself may propose thousands."""
_Judged = tuple[Branch, float]


@dataclass(slots=True, kw_only=True)
class _Frame:
    """A state on the current path, and its children that were not visited yet."""

    thought: Thought
    children: deque[_Judged]


def depth_first(tree: Tree) -> Asking[FinishReason]:
    """Grow the tree until nothing is left ("stop"), enough solutions are found ("stop"), or its
    budget is used up ("length")."""
    judge, threshold = Judge(tree), tree.plan.prune_below
    wanted = tree.context.n
    frames = [_Frame(thought=tree.root, children=(yield from _children(tree, judge, tree.root)))]
    while frames:
        frame = frames[-1]
        if not frame.children:
            frames.pop()
            yield from show((), [frame.thought])
            continue
        if tree.room(1) == 0:
            return "length"
        branch, value = frame.children.popleft()
        thought = tree.add(branch, value)
        thought.pruned = threshold is not None and value < threshold
        tree.leaves.append(thought)
        leaf = thought.pruned or thought.ended or thought.depth >= tree.depth
        node = thought.node("dropped" if thought.pruned else "kept")
        yield from show([node], [thought] if leaf else [])
        wanted -= tree.solves(thought)
        if wanted == 0:
            return "stop"
        if leaf:
            continue
        if tree.room(1) == 0:
            return "length"
        children = yield from _children(tree, judge, thought)
        frames.append(_Frame(thought=thought, children=children))
    return "stop"


def _children(tree: Tree, judge: Judge, thought: Thought) -> Asking[deque[_Judged]]:
    """The children to visit with their values, in that order."""
    most = tree.plan.parameters.max_children
    found = yield from expand(tree, [(thought, 1)])
    distinct: dict[Thoughts, Branch] = {}
    for branch in found:
        distinct.setdefault(branch.path, branch)
    branches = list(distinct.values())
    confident = any(branch.confidence is not None for branch in branches)
    if not confident:
        branches = branches[:MOST_JUDGED]
    else:
        branches = sorted(branches, key=_confidence, reverse=True)[: tree.room(most)]
    values = yield from judge.judge(branches)
    judged = list(zip(branches, values, strict=True))
    best = judged if confident else sorted(judged, key=_value, reverse=True)[:most]
    taken = {id(branch) for branch, _ in best}
    yield from show((), [branch for branch in found if id(branch) not in taken])
    return deque(best)


def _confidence(branch: Branch) -> float:
    return branch.confidence or 0.0


def _value(judged: _Judged) -> float:
    return judged[1]
