"""The Game of 24: steps such as "4 + 5 = 9 (left: 6 9 10)" until one number is left.

Prompts and spelling are those that the embedded model has learnt (models/nano). The labels have the
values of Yao et al. 2023 (arXiv:2305.10601). Unlike the paper's code, this task discards wrong
steps instead of having them judged, and judges a last number itself.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from ....errors import RequestError
from ..arithmetic import MAX_STEP, Numbers, Step, compose, makes, parse_step, spell
from ..prompts import Prompts
from .base import Candidate, Defaults, Puzzle, Task, Thoughts

TARGET: Final = 24
ANSWER: Final = "Answer:"
NONE_FOUND: Final = f"{ANSWER} none was found"
MAX_PROBLEM: Final = 2000
FEWEST: Final = 2
MOST: Final = 6

_NUMBER: Final = re.compile(r"(?:(?<![0-9A-Za-z)])-)?[0-9]+(?:[./][0-9]+)*")
_WHOLE: Final = re.compile(r"[0-9]{1,6}")
_NAME: Final = re.compile(r"game of 24|(?:make|get|reach|makes|to|=) *24", re.IGNORECASE)

_PROMPTS: Final = Prompts(
    propose="Game of 24: {state}\nPossible next steps:",
    sample="Game of 24: {state}\nSolve it.",
    value="Game of 24: {state}\nsure, likely or impossible?",
    vote=(
        "Game of 24: each number is used once, with + - * /, to make 24.\n\n{candidates}\n\n"
        "Which of these can still be completed? Answer with its number."
    ),
)


class Game(Puzzle):
    """The game with some numbers."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = tuple(sorted(numbers))

    @property
    def depth(self) -> int:
        """One less than the numbers: each step takes two and leaves one."""
        return len(self.numbers) - 1

    def state(self, thoughts: Thoughts) -> str:
        """The numbers that are left, ascending."""
        return spell(self._left(thoughts))

    def read(self, texts: Sequence[str]) -> list[Candidate]:
        """Every line, without the blanks around it; overlong lines are dropped."""
        return [
            Candidate(text=line.strip())
            for text in texts
            for line in text.split("\n")
            if len(line) <= MAX_STEP
        ]

    def legal(self, thoughts: Thoughts) -> bool:
        """See `Puzzle`."""
        return self._path(thoughts) is not None

    def finished(self, thoughts: Thoughts) -> bool:
        """See `Puzzle`."""
        return len(self._left(thoughts)) == 1

    def right(self, thoughts: Thoughts) -> bool | None:
        """Whether the expression of the whole path is a solution."""
        if not self.finished(thoughts):
            return None
        path = self._path(thoughts)
        return path is not None and makes(compose(self.numbers, path), self.numbers, TARGET)

    def verdict(self, thoughts: Thoughts) -> str | None:
        """The label of a last number; None while several are left."""
        if not self.finished(thoughts):
            return None
        return "sure" if self._left(thoughts) == (TARGET,) else "impossible"

    def answer(self, thoughts: Thoughts) -> str:
        """The steps and the expression that they make; or that none was found."""
        path = self._path(thoughts)
        if path is None or not self.right(thoughts):
            return NONE_FOUND
        steps = "\n".join(line.strip() for line in thoughts)
        return f"{steps}\n{ANSWER} {compose(self.numbers, path)} = {TARGET}"

    def _left(self, thoughts: Thoughts) -> Numbers:
        path = self._path(thoughts)
        return path[-1].left if path else tuple(map(Fraction, self.numbers))

    def _path(self, thoughts: Thoughts) -> list[Step] | None:
        """The steps of a path; None where one of them is wrong."""
        left: Numbers = tuple(map(Fraction, self.numbers))
        path: list[Step] = []
        for line in thoughts:
            step = parse_step(line, left)
            if step is None:
                return None
            path.append(step)
            left = step.left
        return path


class Game24(Task):
    """See the module."""

    name = "game24"
    defaults = Defaults(
        algorithm="bfs",
        generate_samples=1,
        evaluate_samples=3,
        sample_tokens=48,
        propose_tokens=768,
        judge_tokens=8,
        labels={"impossible": 0.001, "likely": 1.0, "sure": 20.0},
        prune_below=0.1,
        prompts=_PROMPTS,
    )

    def start(self, problem: str) -> Puzzle:
        """Reads whole numbers in any wording, as in "Use 4, 5, 6 and 10 to make 24."."""
        found = _NUMBER.findall(_NAME.sub("", problem[:MAX_PROBLEM]))
        numbers = [int(number) for number in found if _WHOLE.fullmatch(number)]
        fits = FEWEST <= len(numbers) <= MOST and len(numbers) == len(found)
        if len(problem) > MAX_PROBLEM or not fits:
            raise RequestError(
                f"the game24 task takes a prompt with {FEWEST} to {MOST} whole numbers and no "
                f'others, such as "4 5 6 10", in at most {MAX_PROBLEM} characters; this one has '
                f"{len(numbers)} of {len(found)} numbers in {len(problem)} characters",
                param="prompt",
                code="invalid_problem",
            )
        return Game(numbers)


def solved(problem: str, candidates: Sequence[str]) -> list[float]:
    """An evaluator: 1 for texts whose last line that begins with "Answer:" is right, else 0.

    Raises:
        RequestError: the problem is no Game of 24.
    """
    puzzle = GAME24.start(problem)
    assert isinstance(puzzle, Game)
    return [float(_is_solution(text, puzzle.numbers)) for text in candidates]


def _is_solution(text: str, numbers: Sequence[int]) -> bool:
    said = [line.strip() for line in text[-MAX_PROBLEM:].splitlines()]
    answers = [line for line in said if line.startswith(ANSWER)]
    if not answers:
        return False
    expression, equals, result = answers[-1].removeprefix(ANSWER).partition("=")
    return (not equals or result.strip() == str(TARGET)) and makes(expression, numbers, TARGET)


GAME24 = Game24()
