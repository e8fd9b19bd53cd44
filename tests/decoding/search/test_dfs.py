"""Depth first against a plain recursion, in random worlds."""

from random import Random

import pytest

from penstock.decoding.search.operations import Generate
from tests.decoding.search.reference import Path
from tests.decoding.search.scripted import Context, Driver, text_of
from tests.decoding.search.world import LABELS, PROMPTS, World


class Reference:
    """Algorithm 2 of Yao et al. 2023: the best children first, pruned under a bound."""

    def __init__(self, world: World, *, depth: int, children: int, nodes: int, n: int) -> None:
        self.world = world
        self.depth = depth
        self.children = children
        self.nodes = nodes
        self.n = n
        self.visited: list[tuple[Path, float, str]] = []
        self.answers = 0

    def stopped(self) -> bool:
        return len(self.visited) >= self.nodes or self.answers >= self.n

    def value(self, path: Path) -> float:
        return sum(LABELS.get(self.world.label(path, choice), 0.0) for choice in range(2))

    def visit(self, path: Path) -> None:
        lines = list(dict.fromkeys(self.world.proposal(path, 0) + self.world.proposal(path, 1)))
        ranked = sorted(lines, key=lambda line: -self.value((*path, line)))
        for line in ranked[: self.children]:
            if self.stopped():
                return
            child = (*path, line)
            value = self.value(child)
            self.visited.append((child, value, "dropped" if value < 1 else "kept"))
            if value >= 1:
                if line.startswith("Answer:"):
                    self.answers += 1
                elif len(child) < self.depth:
                    self.visit(child)


@pytest.mark.parametrize("nodes", [1, 7, 100])
def test_it_is_the_plain_recursion(nodes: int) -> None:
    for seed in range(40):
        rng, world = Random(seed), World(seed)
        depth, children, n = rng.randint(1, 5), rng.randint(1, 4), rng.randint(1, 3)
        expected = Reference(world, depth=depth, children=children, nodes=nodes, n=n)
        expected.visit(())
        driver = Driver(reply=world.reply)
        outcome = driver.run(
            Context(n=n),
            algorithm="dfs",
            generate_samples=2,
            evaluate_samples=2,
            depth=depth,
            max_children=children,
            prune_below=1.0,
            prompts=PROMPTS,
            labels=LABELS,
            budget={"thoughts": nodes},
        )
        made = [(driver.path(node), node.value or 0.0, node.status) for node in driver.made]
        assert made == expected.visited, seed
        solved = [value for path, value, _ in made if path[-1][:7] == "Answer:" and value >= 1]
        if solved:
            values = {"\n".join(path): value for path, value, _ in made}
            assert values[outcome.answers[0].text] == max(solved)


def test_children_are_judged_together_and_only_they() -> None:
    proposals = "h1. apple (low)\nh2. bread (high)\nh3. chair (certain)\nh4. dance (medium)"

    def reply(text: str, choice: int) -> str:
        return "maybe" if text.startswith("judge") else proposals

    driver = Driver(reply=reply)
    clues = "\n".join(f"{way}{line}. clue" for way in "hv" for line in range(1, 6))
    driver.run(
        Context(problem=clues, max_tokens=500),
        task="crosswords",
        depth=1,
        prompts={"value": "judge {state} {thoughts}"},
    )
    judged = [text_of(one.state) for one in driver.asked(Generate)[1]]
    assert [text.rpartition(" ")[2] for text in judged] == ["chair", "bread", "dance"]
    assert [node.text for node in driver.made] == ["h3. chair", "h2. bread", "h4. dance"]


def test_sampled_thoughts_are_let_go_on_the_way_back() -> None:
    world = World(1)
    driver = Driver(reply=world.reply)  # asserts that nothing freed is continued
    driver.run(
        Context(n=3),
        algorithm="dfs",
        generate="sample",
        generate_samples=4,
        depth=3,
        prompts=PROMPTS,
        labels=LABELS,
        budget={"thoughts": 1000},
    )
    assert len(driver.made) > 3
    again = Driver(reply=lambda text, choice: world.reply(text, choice).partition("\n")[0] + "\n")
    again.run(
        Context(),
        algorithm="dfs",
        generate="sample",
        generate_samples=4,
        depth=3,
        prompts=PROMPTS,
        labels=LABELS,
        budget={"thoughts": 1000},
    )
    assert again.kept == set()
