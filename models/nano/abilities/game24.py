"""The Game of 24 (Yao et al. 2023, arXiv 2305.10601): propose steps, judge states, solve puzzles.

The prompts are those that a tree search sends; its whole-number rules are in arithmetic24.py.
"""

from collections.abc import Mapping
from functools import cache, partial
from random import Random
from typing import Final

from .arithmetic24 import (
    LABELS,
    TARGET,
    Label,
    Numbers,
    expression,
    is_legal,
    is_solution,
    judge_state,
    paths,
    puzzles,
    random_path,
    spell,
    states,
    steps,
)
from .example import Example, Split, Turn, ask

# {numbers} is "4 5 6 10", {listed} is "4, 5, 6 and 10".
PROPOSE_PROMPT: Final = "Game of 24: {numbers}\nPossible next steps:"
JUDGE_PROMPT: Final = "Game of 24: {numbers}\nsure, likely or impossible?"
SOLVE_PROMPTS: Final = (
    "Game of 24: {numbers}\nSolve it.",
    "Use {listed} to make 24.",
    "Make 24 from {numbers}.",
    "How can I get 24 out of {listed}, each used once?",
)
ANSWER_PREFIX: Final = "Answer: "
UNSEEN: Final = "unseen state"
MET: Final = "state also met in training puzzles"

_LONGEST_ANSWER: Final = 10_000


def example(rng: Random, split: Split) -> Example:
    """Draw one example of the three kinds."""
    (draw,) = rng.choices((propose, judge_many, solve), (30, 45, 25))
    return draw(rng, split)


def propose(rng: Random, split: Split) -> Example:
    """Ask for all next steps of a puzzle or of a state that random steps from it lead to."""
    numbers = rng.choice(puzzles(split))
    (taken,) = rng.choices((0, 1, 2), (40, 40, 20))
    for _ in range(taken):
        numbers = rng.choice(steps(numbers)).left
    return Example(
        turns=ask(
            PROPOSE_PROMPT.format(numbers=spell(numbers)),
            "\n".join(step.line for step in steps(numbers)),
        ),
        grade=partial(grade_steps, numbers),
        tags=("propose", f"{len(numbers)} numbers", *_met(numbers, split)),
    )


def judge(rng: Random, split: Split) -> Example:
    """Ask whether 24 is in reach of a state that steps from some puzzle of the split lead to.

    The three labels are equally likely, and three in four states have three numbers. Of the states
    of held-out puzzles, whose are few but "impossible" ones that no training puzzle leads to (9 are
    "likely", 10 "sure"), all are drawn from; the tags tell which were met in training.
    """
    return _judge_last(_draw_state(rng, split), split)


def judge_many(rng: Random, split: Split) -> Example:
    """Ask as `judge` does about six to ten different states in turn; the last is graded."""
    drawn: dict[Numbers, None] = {}
    count = rng.randint(6, 10)
    while len(drawn) < count:
        drawn[_draw_state(rng, split)] = None
    *before, last = (_judge_last(numbers, split) for numbers in drawn)
    turns: list[Turn] = [turn for one in before for turn in one.turns]
    return Example(turns=(*turns, *last.turns), grade=last.grade, tags=last.tags)


def solve(rng: Random, split: Split) -> Example:
    """Ask for a solution of a puzzle that has one in whole numbers; each is equally likely."""
    return _solve(rng.choice(_whole_puzzles(split)), rng)


def held_out_puzzles() -> list[Example]:
    """Return every held-out puzzle, asked for as `solve` does."""
    rng = Random("held-out puzzles")
    return [_solve(numbers, rng) for numbers in _whole_puzzles("held_out")]


def solve_question(numbers: Numbers, rng: Random) -> str:
    """Ask for a solution in one of the wordings of `SOLVE_PROMPTS`."""
    listed = f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
    return rng.choice(SOLVE_PROMPTS).format(numbers=spell(numbers), listed=listed)


def _solve(numbers: Numbers, rng: Random) -> Example:
    path = random_path(numbers, rng)
    lines = [step.line for step in path]
    lines.append(f"{ANSWER_PREFIX}{expression(numbers, path)} = {TARGET}")
    return Example(
        turns=ask(solve_question(numbers, rng), "\n".join(lines)),
        grade=partial(grade_solution, numbers),
        tags=("solve",),
    )


def grade_steps(numbers: Numbers, answer: str) -> Mapping[str, float]:
    """Score an answer's lines.

    "legal" is the share of them that are exact steps from `numbers`, canonical or not; "complete"
    is the share of the canonical steps that are among them.
    """
    lines = [line.strip() for line in answer[:_LONGEST_ANSWER].strip().splitlines()]
    legal = sum(is_legal(line, numbers) for line in lines)
    wanted = {step.line for step in steps(numbers)}
    return {
        "legal": legal / max(1, len(lines)),
        "complete": len(wanted.intersection(lines)) / len(wanted),
    }


def grade_label(label: Label, answer: str) -> Mapping[str, float]:
    """Compare the last line of an answer with the label."""
    last = answer.strip().rpartition("\n")[2]
    return {"right": float(last.strip().lower() == label)}


def grade_solution(numbers: Numbers, answer: str) -> Mapping[str, float]:
    """Check the expression of the first line that starts with "Answer:"; the steps do not count."""
    prefix = ANSWER_PREFIX.strip()
    for line in answer[:_LONGEST_ANSWER].splitlines():
        if line.strip().startswith(prefix):
            text = line.strip().removeprefix(prefix)
            return {"solved": float(is_solution(text, numbers))}
    return {"solved": 0.0}


def _judge_last(numbers: Numbers, split: Split) -> Example:
    label = judge_state(numbers)
    return Example(
        turns=ask(JUDGE_PROMPT.format(numbers=spell(numbers)), label),
        grade=partial(grade_label, label),
        tags=("judge", label, *_met(numbers, split)),
    )


def _draw_state(rng: Random, split: Split) -> Numbers:
    label = rng.choice(LABELS)
    # Only states of three numbers are "likely": with a third of the draws from there, these weights
    # of the other two labels make 75%, 20% and 5% of three, two and one.
    size = 3 if label == "likely" else rng.choices((3, 2, 1), (62.5, 30, 7.5))[0]
    return rng.choice(_pools(split)[label, size])


@cache
def _pools(split: Split) -> Mapping[tuple[Label, int], list[Numbers]]:
    """Sort the states of a split, in a fixed order, by label and how many numbers are left."""
    pools: dict[tuple[Label, int], list[Numbers]] = {}
    for numbers in sorted(states(split)):
        pools.setdefault((judge_state(numbers), len(numbers)), []).append(numbers)
    return pools


@cache
def _whole_puzzles(split: Split) -> tuple[Numbers, ...]:
    return tuple(numbers for numbers in puzzles(split) if paths(numbers))


def _met(numbers: Numbers, split: Split) -> tuple[str, ...]:
    if split == "train":
        return ()
    return (MET,) if numbers in states("train") else (UNSEEN,)
