"""Exact arithmetic for number puzzles: checks expressions and steps.

What models write is never evaluated by Python: an expression is parsed, its tree may hold only
+ - * / and whole numbers, and all of it is computed in exact fractions. The length of texts is
limited, so that neither the parser nor a product can be made to work for long.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

MAX_EXPRESSION: Final = 200
"""Longest expression, in characters; each pair of parentheses is a level of the parser's stack."""
MAX_STEP: Final = 200
"""Longest line of a step, in characters."""

Numbers = tuple[Fraction, ...]

_NUMBER: Final = r"-?[0-9]{1,9}(?:/[1-9][0-9]{0,8}|\.[0-9]{1,9})?"
_OPERAND: Final = rf"({_NUMBER}|\({_NUMBER}\))"
_STEP: Final = re.compile(
    rf"{_OPERAND} *([-+*/]) *{_OPERAND} *= *{_OPERAND} *\(left: *({_NUMBER}(?: {_NUMBER}){{0,9}})\)"
)
_EXPRESSION: Final = re.compile(r"[-+*/() 0-9]+")
_SIGNS: Final[dict[type[ast.operator], str]] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`first sign second = result`, and the numbers that are left after it, ascending."""

    first: Fraction
    sign: str
    second: Fraction
    result: Fraction
    left: Numbers


def parse_step(line: str, numbers: Sequence[Fraction]) -> Step | None:
    """A line such as "4 + 5 = 9 (left: 6 9 10)", if it is an exact step from `numbers`.

    Fractions ("2/3"), decimals ("1.5") and negative numbers may be used, in parentheses or not; a
    rounded result is not exact.
    """
    match = _STEP.fullmatch(line.strip()) if len(line) <= MAX_STEP else None
    if match is None:
        return None
    first, second, result = (Fraction(match[i].strip("()")) for i in (1, 3, 4))
    before, used = Counter(numbers), Counter([first, second])
    if not used <= before or apply(match[2], first, second) != result:
        return None
    left = before - used + Counter([result])
    if Counter(map(Fraction, match[5].split(" "))) != left:
        return None
    return Step(
        first=first,
        sign=match[2],
        second=second,
        result=result,
        left=tuple(sorted(left.elements())),
    )


def compose(numbers: Sequence[int], path: Iterable[Step]) -> str:
    """A path of steps from `numbers` as one expression, without parentheses around the whole.

    Of two equal numbers the older one is used.
    """
    parts = [(Fraction(number), str(number)) for number in numbers]
    text = parts[0][1]
    for step in path:
        operands: list[str] = []
        for value in (step.first, step.second):
            place = next(i for i, part in enumerate(parts) if part[0] == value)
            operands.append(parts.pop(place)[1])
        text = f"{operands[0]} {step.sign} {operands[1]}"
        parts.append((step.result, f"({text})"))
    return text


def makes(expression: str, numbers: Iterable[int], target: int) -> bool:
    """Whether an expression gives `target` and uses exactly these numbers, each once."""
    if len(expression) > MAX_EXPRESSION or not _EXPRESSION.fullmatch(expression):
        return False
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    used: list[int] = []
    return value_of(tree.body, used) == target and sorted(used) == sorted(numbers)


def spell(numbers: Iterable[Fraction]) -> str:
    """Numbers as steps write them, for example "2/3 6 10"."""
    return " ".join(map(str, numbers))


def value_of(node: ast.expr, used: list[int]) -> Fraction | None:
    """The exact value, or None if it is not plain arithmetic; adds the numbers to `used`."""
    if isinstance(node, ast.Constant) and type(node.value) is int:  # True is an int as well
        used.append(node.value)
        return Fraction(node.value)
    if not isinstance(node, ast.BinOp):
        return None
    sign = _SIGNS.get(type(node.op))
    first, second = value_of(node.left, used), value_of(node.right, used)
    if sign is None or first is None or second is None:
        return None
    return apply(sign, first, second)


def apply(sign: str, first: Fraction, second: Fraction) -> Fraction | None:
    """The exact result of + - * or /; None for a division by zero."""
    if sign == "/":
        return first / second if second else None
    return {"+": first + second, "-": first - second, "*": first * second}[sign]
