"""Breadth-first search: each step expands all kept states at once, and keeps the best results.

Yao et al. 2023 (arXiv:2305.10601), algorithm 1. Ties, duplicates and caches are handled as in the
paper's own runs, so that those can be replayed. What the paper leaves open: a state drawn twice is
asked for twice as many thoughts; a solution that has ended leaves the search; and a solution known
to be right is an answer whatever its value.
"""

from random import Random

from .evaluation import Judge
from .generation import expand
from .operations import FinishReason
from .selection import select
from .tree import Asking, Thought, Tree, show


def breadth_first(tree: Tree) -> Asking[FinishReason]:
    """Grow the tree step by step; returns "length" where its budget cut a step short."""
    plan, judge = tree.plan, Judge(tree)
    kept: list[tuple[Thought, int]] = [(tree.root, 1)]
    ended: list[Thought] = []
    for step in range(1, tree.depth + 1):
        if not kept:
            break
        if tree.room(1) == 0:
            return "length"
        branches = yield from expand(tree, kept)
        allowed = branches[: tree.room(len(branches))]
        values = yield from judge.judge(allowed)
        thoughts = [tree.add(one, value) for one, value in zip(allowed, values, strict=True)]
        rng = Random(f"{tree.context.seed} {step}")
        chosen = select(values, plan.parameters.breadth, plan.parameters.select, rng)
        best = [(thoughts[place], times) for place, times in chosen.items()]
        ended += [thought for thought, _ in best if thought.ended]
        ended += [one for i, one in enumerate(thoughts) if i not in chosen and tree.verified(one)]
        parents = [thought for thought, _ in kept]
        kept = [(thought, times) for thought, times in best if not thought.ended]
        tree.leaves = [*ended, *(thought for thought, _ in kept)] or tree.leaves
        living = {id(thought.generated) for thought, _ in kept}
        dead = [one for one in (*parents, *branches) if id(one.generated) not in living]
        nodes = [
            thought.node("kept" if place in chosen else "dropped")
            for place, thought in enumerate(thoughts)
        ]
        yield from show(nodes, dead)
        if len(allowed) < len(branches):
            return "length"
    return "stop"
