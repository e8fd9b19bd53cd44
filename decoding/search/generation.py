"""Generates the thoughts that may come next."""

from collections.abc import Sequence

from .operations import Generate, Generated
from .tasks.base import Candidate
from .tree import Asking, Branch, Thought, Tree


def expand(tree: Tree, parents: Sequence[tuple[Thought, int]]) -> Asking[list[Branch]]:
    """What may follow each parent, in the order of `parents`: (parent, multiple of the samples).

    All parents are expanded at once. Candidates that the task knows to be wrong are left out;
    duplicates are not.
    """
    if tree.plan.parameters.generate == "sample":
        return (yield from _sample(tree, parents))
    return (yield from _propose(tree, parents))


def _sample(tree: Tree, parents: Sequence[tuple[Thought, int]]) -> Asking[list[Branch]]:
    results: list[tuple[Generated, ...]] = yield [
        Generate(
            state=parent.generated.state if parent.generated is not None else tree.origin,
            count=times * tree.plan.generate_samples,
            max_tokens=tree.context.max_tokens or tree.plan.thought_tokens,
            stop=tree.plan.stop,
            keep=True,
        )
        for parent, times in parents
    ]
    branches: list[Branch] = []
    for (parent, _), result in zip(parents, results, strict=True):
        for made in result:
            path = (*parent.path, made.text)
            if tree.puzzle.legal(path):
                branches.append(Branch(parent=parent, path=path, generated=made))
    return branches


def _propose(tree: Tree, parents: Sequence[tuple[Thought, int]]) -> Asking[list[Branch]]:
    template = tree.plan.prompts.propose
    assert template is not None
    asked = [tree.prompt(template, parent.path) for parent, _ in parents]
    counts: dict[str, int] = {}
    for prompt, (_, times) in zip(asked, parents, strict=True):
        counts[prompt] = max(counts.get(prompt, 0), times * tree.plan.generate_samples)
    results: list[tuple[Generated, ...]] = yield [
        Generate(
            state=tree.context.ask(prompt),
            count=count,
            max_tokens=tree.context.max_tokens or tree.plan.thought_tokens,
            form="propose",
        )
        for prompt, count in counts.items()
    ]
    texts = dict(zip(counts, results, strict=True))
    forms = tree.plan.parameters.forms
    branches: list[Branch] = []
    for prompt, (parent, times) in zip(asked, parents, strict=True):
        count = times * tree.plan.generate_samples
        lists = [forms.read("propose", one.text) for one in texts[prompt][:count]]
        read: list[Candidate] = tree.puzzle.read(lists)
        for candidate in read:
            path = (*parent.path, candidate.text)
            if tree.puzzle.legal(path):
                confidence = candidate.confidence
                branches.append(Branch(parent=parent, path=path, confidence=confidence))
    return branches
