"""5x5 crosswords, as in Yao et al. 2023 (arXiv:2305.10601): a thought fills one clue, "h1. apple".

Proposals carry the model's confidence, which is summed over equal proposals. Each clue with at
least two letters is judged; one that is called impossible decides the value of the board.
"""

import re
from collections.abc import Sequence
from typing import Final

from ....errors import RequestError
from ..prompts import Prompts
from .base import Candidate, Defaults, Puzzle, Task, Thoughts
from .board import BLANK, PLACES, SIDE, Board

DEPTH: Final = 9
MAX_LINE: Final = 300
MAX_PROBLEM: Final = 8000
MOST_BLANKS: Final = 3
"""Most blanks of a clue that is judged: some word nearly always fits a single letter."""
CONFIDENCES: Final = {"certain": 1.0, "high": 0.5, "medium": 0.2, "low": 0.1}

_CLUE: Final = re.compile(r"(?:[-*] )?([hvHV][1-5]) ?[.:)] ?(\S.*?)(?:: [A-Z_]{5})?")
_PROPOSAL: Final = re.compile(
    r"(?:[-*] )?([hv][1-5])\. ([A-Za-z]{5}) \((certain|high|medium|low)\).*"
)
_SAMPLED: Final = re.compile(r"(?:[-*] )?([hv][1-5])\. ([A-Za-z]{5})\b.*")

_PROMPTS: Final = Prompts(
    propose=(
        "A crossword of 5 by 5 letters. h1 to h5 are its rows, v1 to v5 its columns, _ is an empty "
        "square.\n\n{state}\n"
        "Which words could be filled in next? Write each on a line of its own, with how confident "
        'you are (certain, high, medium or low), as in "h1. apple (medium)", and nothing else.'
    ),
    sample=(
        "A crossword of 5 by 5 letters. h1 to h5 are its rows, v1 to v5 its columns.\n\n{problem}\n"
        'Fill in the words, each on a line of its own, as in "h1. apple", and write nothing else.'
    ),
    value=(
        "A clue of a crossword and the letters that are known, _ for the others:\n{state}\n"
        "Is there a word of five letters that fits both: sure, maybe or impossible? "
        "Answer with one word."
    ),
    vote=(
        "A crossword of 5 by 5 letters. h1 to h5 are its rows, v1 to v5 its columns.\n\n{problem}\n"
        "Words filled in so far:\n\n{candidates}\n\n"
        "Which of these is the most promising? Answer with its number."
    ),
)


class Crossword(Puzzle):
    """A crossword with some clues, in the order of `PLACES`."""

    def __init__(self, clues: tuple[str, ...]) -> None:
        self.clues = clues

    @property
    def depth(self) -> int:
        """The paper's limit, which is below the ten clues."""
        return DEPTH

    def board(self, thoughts: Thoughts) -> Board:
        """The board after a path; thoughts that are not actions change nothing."""
        board = Board()
        for thought in thoughts:
            board = board.place(_action(thought)) or board
        return board

    def state(self, thoughts: Thoughts) -> str:
        """See `Board.render`."""
        return self.board(thoughts).render(self.clues)

    def read(self, texts: Sequence[str]) -> list[Candidate]:
        """Each action once, in order of first occurrence, with the sum of its confidences."""
        sums: dict[str, float] = {}
        for text in texts:
            for line in text.split("\n"):
                match = _PROPOSAL.fullmatch(line.strip()) if len(line) <= MAX_LINE else None
                if match is not None:
                    action = f"{match[1]}. {match[2].lower()}"
                    sums[action] = sums.get(action, 0.0) + CONFIDENCES[match[3]]
        return [Candidate(text=text, confidence=sums[text]) for text in sums]

    def legal(self, thoughts: Thoughts) -> bool:
        """Whether the newest thought is an action and overwrites no letter."""
        board = self.board(thoughts[:-1]).place(_action(thoughts[-1]))
        return board is not None and not board.changed

    def finished(self, thoughts: Thoughts) -> bool:
        """Whether every clue was filled by its own action; a full board alone is not finished."""
        return all(status == "filled" for status in self.board(thoughts).statuses)

    def progress(self, thoughts: Thoughts) -> float:
        """The number of letters filled in."""
        return float(SIDE**2 - self.board(thoughts).letters.count(BLANK))

    def judged(self, thoughts: Thoughts) -> tuple[str, ...]:
        """The clues with at least two known letters."""
        board = self.board(thoughts)
        return tuple(
            board.clue(place, self.clues)
            for place, word in enumerate(board.words)
            if word.count(BLANK) <= MOST_BLANKS
        )

    def combine(self, values: Sequence[float]) -> float:
        """The lowest value if it is below zero, else the sum."""
        worst = min(values, default=0.0)
        return worst if worst < 0 else sum(values)

    def answer(self, thoughts: Thoughts) -> str:
        """The rows of the board."""
        return "\n".join(self.board(thoughts).words[:SIDE])


class Crosswords(Task):
    """See the module."""

    name = "crosswords"
    defaults = Defaults(
        algorithm="dfs",
        generate_samples=8,
        evaluate_samples=1,
        sample_tokens=16,
        propose_tokens=256,
        judge_tokens=16,
        labels={"impossible": -1.0, "maybe": 1.0, "sure": 2.0},
        prune_below=0.0,
        prompts=_PROMPTS,
    )

    def start(self, problem: str) -> Puzzle:
        """Reads ten clues, one a line, as in "h1. An engine", in any order, among other lines."""
        clues: dict[str, str] = {}
        for line in problem[:MAX_PROBLEM].splitlines():
            match = _CLUE.fullmatch(line.strip()) if len(line) <= MAX_LINE else None
            if match is not None:
                clues.setdefault(match[1].lower(), match[2])
        missing = [place for place in PLACES if place not in clues]
        if missing or len(problem) > MAX_PROBLEM:
            raise RequestError(
                'the crosswords task takes a prompt with ten clues, one a line, as in "h1. An '
                f'engine", h1 to h5 and v1 to v5, in at most {MAX_PROBLEM} characters; missing '
                f"here: {', '.join(missing) or 'none'}, in {len(problem)} characters",
                param="prompt",
                code="invalid_problem",
            )
        return Crossword(tuple(clues[place] for place in PLACES))


def _action(thought: str) -> str:
    """The action in a sampled line; the line itself if it has none."""
    match = _SAMPLED.fullmatch(thought.strip()) if len(thought) <= MAX_LINE else None
    return thought if match is None else f"{match[1]}. {match[2].lower()}"
