"""Breadth-first tree of thoughts as a plain loop over texts: what the controller must equal."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

Path = tuple[str, ...]


@dataclass
class Reference:
    """A search in a world of functions.

    `generate`: thoughts that may follow a path, given how many times over; (thought, it is the
    end). `value`: of a path. `judge_all`: values of several paths at once, in place of `value`.
    """

    generate: Callable[[Path, int], list[tuple[str, bool]]]
    value: Callable[[Path], float] | None = None
    judge_all: Callable[[list[Path]], list[float]] | None = None
    steps: list[list[tuple[Path, float, str]]] = field(default_factory=list)
    finished: list[tuple[Path, float]] = field(default_factory=list)
    kept: list[tuple[Path, float]] = field(default_factory=list)

    def run(self, *, depth: int, breadth: int, select: str, seed: int) -> None:
        frontier: list[tuple[Path, int]] = [((), 1)]
        for step in range(1, depth + 1):
            if not frontier:
                break
            paths: list[Path] = []
            ends: list[bool] = []
            for state, times in frontier:
                for thought, end in self.generate(state, times):
                    paths.append((*state, thought))
                    ends.append(end)
            values = self.values(paths)
            places = self.select(values, breadth, select, Random(f"{seed} {step}"))
            self.steps.append(
                [
                    (path, value, "kept" if i in places else "dropped")
                    for i, (path, value) in enumerate(zip(paths, values, strict=True))
                ]
            )
            frontier, self.kept = [], []
            for place in dict.fromkeys(places):
                if ends[place]:
                    self.finished.append((paths[place], values[place]))
                else:
                    frontier.append((paths[place], places.count(place)))
                    self.kept.append((paths[place], values[place]))

    def values(self, paths: list[Path]) -> list[float]:
        distinct: list[Path] = []
        for path in paths:
            if path not in distinct:
                distinct.append(path)
        if self.judge_all is not None:
            first = dict(zip(distinct, self.judge_all(distinct), strict=True))
        else:
            assert self.value is not None
            first = {path: self.value(path) for path in distinct}
        values: list[float] = []
        for i, path in enumerate(paths):
            values.append(0.0 if path in paths[:i] else first[path])
        return values

    def select(self, values: list[float], count: int, how: str, rng: Random) -> list[int]:
        if how == "greedy":
            left = list(range(len(values)))
            chosen: list[int] = []
            while left and len(chosen) < count:
                best = left[0]
                for place in left:
                    if values[place] > values[best]:
                        best = place
                left.remove(best)
                chosen.append(best)
            return chosen
        if not values:
            return []
        total = sum(max(0.0, value) for value in values)
        weights = [max(0.0, value) if total else 1.0 for value in values]
        return rng.choices(range(len(values)), weights, k=count)

    def best(self, n: int) -> list[Path]:
        """The answers: ended ones first, then by value, of equal ones the earliest."""
        ranked = sorted(self.finished, key=lambda one: -one[1])
        ranked += sorted(self.kept, key=lambda one: -one[1])
        paths: list[Path] = []
        for path, _ in ranked:
            if path not in paths:
                paths.append(path)
        return paths[:n]
