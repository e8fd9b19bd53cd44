import csv
import re
from collections import Counter
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from random import Random

import pytest

from penstock.models.nano.abilities import game24
from penstock.models.nano.abilities.arithmetic24 import (
    Numbers,
    is_held_out,
    is_legal,
    is_solution,
    judge_state,
    puzzles,
    states,
    steps,
)
from penstock.models.nano.abilities.example import Example, Split

_PUZZLES = Path(__file__).parents[2] / "../shared/data/game24/24.csv"
_KINDS = [game24.propose, game24.judge, game24.judge_many, game24.solve, game24.example]
_GARBAGE = [
    pytest.param("", id="empty"),
    pytest.param("\n \n", id="blank"),
    pytest.param("Answer:", id="prefix-alone"),
    pytest.param("Answer: =", id="equals-alone"),
    pytest.param("Answer: " + "9" * 100_000, id="huge-number"),
    pytest.param("Answer: " + "9" * 100 + " * " + "9" * 9, id="large-number"),
    pytest.param("Answer: " + "(" * 10_000 + ")" * 10_000, id="deep"),
    pytest.param("Answer: " + "(" * 55 + "4" + ")" * 55, id="deep-but-short"),
    pytest.param("Answer: " + "-" * 100 + "4", id="signs"),
    pytest.param("Answer: 4 / (5 - 5) = 24", id="division-by-zero"),
    pytest.param("Answer: 4 ** 5 ** 6 ** 10 = 24", id="power"),
    pytest.param("Answer: 4 // 5 = 24", id="floor"),
    pytest.param("Answer: 04 + 1", id="leading-zero"),
    pytest.param("Answer: 4(5)", id="call"),
    pytest.param("Answer: __import__('os').getpid()", id="code"),
    pytest.param("Answer: ٤ × ６ = ２４", id="unicode"),
    pytest.param("Answer: \x00\ud800", id="not-text"),
    pytest.param("4 / 0 = 0 (left: 0 6 10)", id="step-divides-by-zero"),
    pytest.param("4 + 5 = 1/0 (left: 1/0 6 10)", id="step-with-no-number"),
    pytest.param("4 + 5 = " + "9" * 10_000 + " (left: 6 9 10)", id="step-with-huge-number"),
    pytest.param("４ + 5 = 9 (left: 6 9 10)", id="step-in-unicode"),
]


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("kind", _KINDS)
def test_every_example_grades_its_own_answer_right(
    kind: Callable[[Random, Split], Example], split: Split
) -> None:
    rng = Random(7)
    for _ in range(300):
        one = kind(rng, split)
        assert set(one.grade(one.answer).values()) == {1.0}, one
        assert [turn.role for turn in one.turns] == ["user", "assistant"] * (len(one.turns) // 2)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_four_numbers_are_a_puzzle_of_the_split(split: Split) -> None:
    rng, seen = Random(1), 0
    for _ in range(1000):
        for turn in game24.example(rng, split).turns[::2]:
            numbers = _numbers(turn.text)
            if len(numbers) == 4:
                seen += 1
                assert is_held_out(numbers) == (split == "held_out")
    assert seen > 200


@pytest.mark.parametrize("kind", _KINDS)
def test_the_same_seed_gives_the_same_examples(kind: Callable[[Random, Split], Example]) -> None:
    first, again, other = (
        [kind(rng, "train").turns for _ in range(20)] for rng in map(Random, (3, 3, 4))
    )
    assert first == again != other


def test_there_are_1362_solvable_puzzles() -> None:
    assert len(puzzles("train")) == 1262
    assert len(puzzles("held_out")) == 100


def test_the_held_out_puzzles_are_those_of_the_paper() -> None:
    if not _PUZZLES.exists():
        pytest.skip(f"{_PUZZLES} is not there to compare with")
    with _PUZZLES.open(newline="") as file:
        rows = [(int(row["Rank"]), _numbers(row["Puzzles"])) for row in csv.DictReader(file)]
    assert sorted(n for rank, n in rows if 901 <= rank <= 1000) == list(puzzles("held_out"))
    assert sorted(n for _, n in rows) == sorted(puzzles("train") + puzzles("held_out"))


def test_the_steps_of_a_state() -> None:
    assert [step.line for step in steps((3, 6, 6))] == [
        "3 + 6 = 9 (left: 6 9)",
        "3 * 6 = 18 (left: 6 18)",
        "6 - 3 = 3 (left: 3 6)",
        "6 / 3 = 2 (left: 2 6)",
        "6 + 6 = 12 (left: 3 12)",
        "6 * 6 = 36 (left: 3 36)",
        "6 - 6 = 0 (left: 0 3)",
        "6 / 6 = 1 (left: 1 3)",
    ]
    assert [step.line for step in steps((0, 24))] == [
        "0 + 24 = 24 (left: 24)",
        "0 * 24 = 0 (left: 0)",
        "24 - 0 = 24 (left: 24)",
    ]


def _numbers(text: str) -> Numbers:
    """Return the numbers of a question but its target."""
    text = re.sub(r"Game of 24:|Can they make 24|Make 24|make 24|get 24", "", text)
    return tuple(sorted(map(int, re.findall(r"\d+", text))))


def _reaches_24(numbers: Numbers) -> bool:
    """Try every order of every pair, knowing nothing of the canonical steps."""
    if len(numbers) == 1:
        return numbers[0] == 24
    return any(_reaches_24(left) for _, left in _plain_steps(numbers))


def _plain_steps(numbers: Numbers) -> list[tuple[object, Numbers]]:
    found: list[tuple[object, Numbers]] = []
    for a, b, *rest in permutations(numbers) if len(numbers) > 1 else ():
        results = [("+", a + b), ("*", a * b)] if a <= b else [("-", a - b)]
        results += [("-", 0)] if a == b else []
        results += [("/", a // b)] if a >= b > 0 and a % b == 0 else []
        found += [((a, s, b), tuple(sorted([*rest, c]))) for s, c in results if c >= 0]
    return found


def test_labels_against_brute_force() -> None:
    rng = Random(0)
    for numbers in rng.sample(sorted(states("train") | states("held_out")), 1500):
        good = {name for name, left in _plain_steps(numbers) if _reaches_24(left)}
        if len(numbers) < 3:
            expected = "sure" if good or numbers == (24,) else "impossible"
        else:
            expected = ("impossible", "likely", "sure")[min(2, len(good))]
        assert judge_state(numbers) == expected, numbers


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_labels_and_sizes_are_balanced(split: Split) -> None:
    rng, draws = Random(0), 6000
    examples = [game24.judge(rng, split) for _ in range(draws)]
    labels = Counter(one.answer for one in examples)
    sizes = Counter(len(_numbers(one.turns[0].text)) for one in examples)
    # Four standard deviations of a share of 6000 draws are below 0.026.
    assert all(abs(labels[label] / draws - 1 / 3) < 0.026 for label in labels)
    assert all(abs(sizes[n] / draws - p) < 0.026 for n, p in ((3, 0.75), (2, 0.20), (1, 0.05)))


@pytest.mark.parametrize(
    ("line", "legal"),
    [
        pytest.param("4 + 5 = 9 (left: 6 9 10)", True, id="canonical"),
        pytest.param("5 + 4 = 9 (left: 10 9 6)", True, id="other-order"),
        pytest.param("4 - 10 = -6 (left: -6 5 6)", True, id="negative"),
        pytest.param("4 / 5 = 4/5 (left: 4/5 6 10)", True, id="fraction"),
        pytest.param("4 / 5 = 0.8 (left: 0.8 6 10)", True, id="decimal"),
        pytest.param("4 + 5 = 8 (left: 6 8 10)", False, id="wrong-sum"),
        pytest.param("4 + 5 = 9 (left: 6 9)", False, id="one-lost"),
        pytest.param("4 + 5 = 9 (left: 6 9 9)", False, id="one-changed"),
        pytest.param("4 + 5 = 9 (left: 5 6 9 10)", False, id="one-kept"),
        pytest.param("4 + 4 = 8 (left: 6 8 10)", False, id="used-twice"),
        pytest.param("4 + 7 = 11 (left: 6 10 11)", False, id="not-there"),
        pytest.param("4 / 6 = 0.667 (left: 0.667 5 10)", False, id="rounded"),
        pytest.param("4 + 5 = 9", False, id="no-rest"),
    ],
)
def test_legal_lines(line: str, legal: bool) -> None:
    assert is_legal(line, (4, 5, 6, 10)) is legal


def test_shares_of_the_proposed_steps() -> None:
    lines = [step.line for step in steps((4, 5, 6, 10))]
    half = lines[: len(lines) // 2]
    wrong = ["4 + 5 = 8 (left: 6 8 10)"] * len(half)
    scores = game24.grade_steps((4, 5, 6, 10), "\n".join(half + wrong))
    assert scores == {"legal": 0.5, "complete": len(half) / len(lines)}
    repeated = game24.grade_steps((4, 5, 6, 10), "\n".join([lines[0]] * 9))
    assert repeated == {"legal": 1.0, "complete": 1 / len(lines)}


@pytest.mark.parametrize(
    ("answer", "right"),
    [("sure", 1.0), ("They can.\n Sure ", 1.0), ("sure\nlikely", 0.0), ("sure thing", 0.0)],
)
def test_grade_of_a_label(answer: str, right: float) -> None:
    assert game24.grade_label("sure", answer) == {"right": right}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        pytest.param("5 * (10 - 6) + 4 = 24", True, id="right"),
        pytest.param("(5 * (10 - 6)) + 4", True, id="no-equals"),
        pytest.param("5 * (10 - 6) + 4 = 25", False, id="other-target"),
        pytest.param("5 * (10 - 6) + 4 = 24 = 24", False, id="two-equals"),
        pytest.param("5 * (10 - 6) - 4 = 24", False, id="wrong"),
        pytest.param("4 * 6 = 24", False, id="two-left-out"),
        pytest.param("4 * 6 + 5 - 5 = 24", False, id="used-twice"),
        pytest.param("24", False, id="target-alone"),
    ],
)
def test_solutions(text: str, right: bool) -> None:
    assert is_solution(text, (4, 5, 6, 10)) is right
    answer = f"4 + 5 = 9 (left: 6 9 10)\nAnswer: {text}"
    assert game24.grade_solution((4, 5, 6, 10), answer) == {"solved": float(right)}


def test_solutions_are_checked_exactly() -> None:
    assert is_solution("8 / (3 - 8 / 3)", (3, 3, 8, 8))
    assert not is_solution("8 / (3 - 8 / 3) + 1 / 999999999", (1, 3, 3, 8, 8, 999999999))


def test_only_the_first_answer_counts() -> None:
    guesses = "Answer: 4 * 6 = 24\nAnswer: 5 * (10 - 6) + 4 = 24"
    assert game24.grade_solution((4, 5, 6, 10), guesses) == {"solved": 0.0}


@pytest.mark.parametrize("answer", _GARBAGE)
def test_garbage_scores_nothing(answer: str) -> None:
    numbers = (4, 5, 6, 10)
    assert set(game24.grade_steps(numbers, answer).values()) == {0.0}
    assert game24.grade_label("sure", answer) == {"right": 0.0}
    assert game24.grade_solution(numbers, answer) == {"solved": 0.0}
