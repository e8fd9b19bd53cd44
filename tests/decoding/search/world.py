"""A model whose words follow from a seed: few different ones, so that they tie and repeat."""

from random import Random

from tests.decoding.search.reference import Path

LABELS = {"impossible": 0.0, "likely": 1.0, "sure": 20.0}
PROMPTS = {
    "propose": "propose {thoughts}",
    "value": "judge {thoughts}",
    "vote": "vote\n{candidates}",
}
WORDS = ("a", "b", "c", "d", "a")


class World:
    """What the model writes: it follows from the text before it, the choice and the seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def draw(self, *about: object) -> Random:
        return Random(repr((self.seed, *about)))

    def proposal(self, path: Path, choice: int) -> list[str]:
        rng = self.draw("proposal", path, choice)
        return rng.choices([*WORDS, " ", "Answer: e"], k=rng.randint(1, 4))

    def sample(self, path: Path, choice: int) -> tuple[str, bool]:
        rng = self.draw("sample", path, choice)
        return rng.choice(WORDS), rng.random() < 0.2

    def label(self, path: Path, choice: int) -> str:
        return self.draw("label", path, choice).choice(["impossible", "likely", "sure", "no idea"])

    def vote(self, paths: list[Path], choice: int) -> str:
        place = self.draw("vote", tuple(paths), choice).randint(0, len(paths) + 1)
        return f"the best is {place}"

    def score(self, path: Path) -> float:
        return self.draw("score", path).choice([0.0, -1.0, 0.25, 3.0, float("nan")])

    def evaluate(self, text: str) -> float:
        return self.score(path_of(text))

    def reply(self, text: str, choice: int) -> str:
        kind, _, rest = text.partition(" ")
        if kind == "propose":
            return "\n".join(self.proposal(path_of(rest), choice))
        if kind == "judge":
            return "I think:\n" + self.label(path_of(rest), choice)
        if text.startswith("vote\n"):
            listed = text.removeprefix("vote\n").split("\n\n")
            return self.vote([path_of(one.partition(". ")[2]) for one in listed], choice)
        word, end = self.sample(path_of(text.removeprefix("problem").rstrip("\n")), choice)
        return word if end else f"{word}\nand more"


def path_of(text: str) -> Path:
    return tuple(text.split("\n")) if text else ()
