"""The checker against honest and hostile texts."""

import ast
from fractions import Fraction
from itertools import permutations
from random import Random

import pytest

from penstock.decoding.search.arithmetic import Step, compose, makes, parse_step, value_of

FOUR = (4, 5, 6, 10)


@pytest.mark.parametrize(
    ("text", "numbers", "right"),
    [
        ("(10 - 4) * 5 - 6", FOUR, True),
        ("  (10-4)*5-6 ", FOUR, True),
        ("8 / (3 - 8 / 3)", (3, 3, 8, 8), True),
        ("4 * (10 - 5 + 6)", FOUR, False),
        ("4 * 6", FOUR, False),
        ("24", FOUR, False),
        ("24", (24,), True),
        ("4 * 6 * (10 - 5 - 4)", FOUR, False),
        ("4 + 5 / (6 - 6)", FOUR, False),
        ("(10 - 4) * 5 - 6 = 24", FOUR, False),
    ],
)
def test_makes(text: str, numbers: tuple[int, ...], right: bool) -> None:
    assert makes(text, numbers, 24) == right


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "9" * 100_000,
        "9**9**9",
        "4 ** 5 ** 6 ** 10",
        "4 // 5 + 6 + 10",
        "__import__('os').getpid()",
        "(" * 99 + "4" + ")" * 99,
        "(" * 50_000 + ")" * 50_000,
        "-" * 150 + "4",
        "4(5)",
        "(4)(5)",
        "4 if 5 else 6",
        "04 + 1",
        "4_0",
        "0x18",
        "2e1 + 4",
        "24.0",
        "True",
        "٤ × ６ = ２４",
        "\x00\ud800",
        "4\n+ 5",
        "lambda: 4",
    ],
)
def test_hostile_texts_are_no_expressions(text: str) -> None:
    assert not makes(text, FOUR, 24)
    assert parse_step(text, tuple(map(Fraction, FOUR))) is None


@pytest.mark.parametrize("text", ["True", "True + 1", "1.0", "1j", "'1'", "-1", "1 % 1", "one"])
def test_only_whole_numbers_have_a_value(text: str) -> None:
    """The characters of an expression are checked before; the tree is checked by itself."""
    assert value_of(ast.parse(text, mode="eval").body, []) is None


def numbers(*some: int | str) -> tuple[Fraction, ...]:
    return tuple(map(Fraction, some))


@pytest.mark.parametrize(
    ("line", "before", "left"),
    [
        ("4 + 5 = 9 (left: 6 9 10)", numbers(*FOUR), numbers(6, 9, 10)),
        ("  4 + 5 = 9 (left: 10 9 6)\n", numbers(*FOUR), numbers(6, 9, 10)),
        ("6 / 4 = 1.5 (left: 1.5 5 10)", numbers(*FOUR), numbers("3/2", 5, 10)),
        ("6 / 4 = 3/2 (left: 3/2 5 10)", numbers(*FOUR), numbers("3/2", 5, 10)),
        ("4 - 5 = -1 (left: -1 6 10)", numbers(*FOUR), numbers(-1, 6, 10)),
        ("6 + (-1) = 5 (left: 5 10)", numbers(-1, 6, 10), numbers(5, 10)),
        ("6 - -1 = 7 (left: 7 10)", numbers(-1, 6, 10), numbers(7, 10)),
        ("2/3 * 6 = 4 (left: 4)", numbers("2/3", 6), numbers(4)),
    ],
)
def test_steps(line: str, before: tuple[Fraction, ...], left: tuple[Fraction, ...]) -> None:
    step = parse_step(line, before)
    assert step is not None
    assert step.left == left


@pytest.mark.parametrize(
    "line",
    [
        "4 + 5 = 10 (left: 6 10 10)",
        "4 + 5 = 9 (left: 6 9)",
        "4 + 5 = 9 (left: 4 6 9 10)",
        "4 + 4 = 8 (left: 5 6 8 10)",
        "3 + 5 = 8 (left: 6 8 10)",
        "10 / 6 = 1.667 (left: 1.667 4 5)",
        "10 / 6 = 1.667 (approx.) (left: 1.667 4 5)",
        "4 / 0 = 0 (left: 0 6 10)",
        "4 + 5 = 1/0 (left: 1/0 6 10)",
        "4 + 5 = 9",
        "４ + 5 = 9 (left: 6 9 10)",
        "4 + 5 = " + "9" * 100_000 + " (left: 6 9 10)",
        " " * 100_000 + "4 + 5 = 9 (left: 6 9 10)",
        "4 ^ 5 = 9 (left: 6 9 10)",
    ],
)
def test_wrong_steps(line: str) -> None:
    assert parse_step(line, numbers(*FOUR, 0)[:4]) is None


def test_a_path_is_composed_into_what_it_computes() -> None:
    rng = Random(5)
    for _ in range(300):
        start = tuple(rng.randint(1, 13) for _ in range(rng.randint(2, 6)))
        left: tuple[Fraction, ...] = numbers(*start)
        path: list[Step] = []
        while len(left) > 1:
            first, second = rng.choice(list(permutations(left, 2)))
            sign = rng.choice("+-*/" if second else "+-*")
            result = {"+": first + second, "-": first - second, "*": first * second}.get(sign)
            result = first / second if result is None else result
            rest = list(left)
            rest.remove(first)
            rest.remove(second)
            spelled = " ".join(map(str, [*rest, result]))
            step = parse_step(f"{first} {sign} {second} = {result} (left: {spelled})", left)
            if step is None:  # a number longer than any puzzle's
                break
            path.append(step)
            left = step.left
        else:
            last = next(iter(left))
            whole = last.denominator == 1
            assert makes(compose(start, path), start, int(last)) == whole
