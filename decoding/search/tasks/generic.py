"""Any question: thoughts are lines of text, and nothing is known about them."""

from typing import Final

from ..prompts import Prompts
from .base import Defaults, Puzzle, Task, Thoughts

DEPTH: Final = 8
LAST: Final = "answer:"
"""The beginning of a thought that completes a solution."""

_PROMPTS: Final = Prompts(
    propose=(
        "{problem}\n\nSteps so far:\n{thoughts}\n\n"
        "Which different steps could come next? Write each on a line of its own and nothing else. "
        'A step that completes the solution begins with "Answer:".'
    ),
    value=(
        "{problem}\n\nSteps so far:\n{thoughts}\n\n"
        "Do these steps lead to a right solution: sure, likely or impossible? "
        "Answer with one word."
    ),
    vote=(
        "{problem}\n\nSolutions so far:\n\n{candidates}\n\n"
        "Which of them is the most promising? Answer with its number."
    ),
)


class Question(Puzzle):
    """A question of any kind."""

    @property
    def depth(self) -> int:
        """See `Puzzle`."""
        return DEPTH

    def answer(self, thoughts: Thoughts) -> str:
        """All thoughts."""
        return "\n".join(thoughts)

    def finished(self, thoughts: Thoughts) -> bool:
        """Whether the newest thought begins with "Answer:"."""
        return bool(thoughts) and thoughts[-1].lstrip().casefold().startswith(LAST)


class Generic(Task):
    """See the module."""

    name = "generic"
    verbatim = True
    defaults = Defaults(
        algorithm="bfs",
        generate_samples=1,
        evaluate_samples=3,
        sample_tokens=128,
        propose_tokens=512,
        judge_tokens=16,
        labels={"impossible": 0.001, "likely": 1.0, "sure": 20.0},
        prune_below=0.1,
        prompts=_PROMPTS,
    )

    def start(self, problem: str) -> Puzzle:
        """See `Task`."""
        return Question()
