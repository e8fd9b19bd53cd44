"""The rules of the Game of 24: steps, what is in reach, which puzzles there are and who sees them.

A state is the ascending tuple of the numbers that are left. Steps stay within the whole
non-negative numbers; only the list of solvable puzzles and the checks of answers know fractions.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations, combinations_with_replacement
from random import Random
from typing import Final, Literal

from penstock.decoding.search.arithmetic import apply, makes

from .example import Split

Numbers = tuple[int, ...]
Label = Literal["sure", "likely", "impossible"]
LABELS: Final[tuple[Label, ...]] = ("sure", "likely", "impossible")
TARGET: Final = 24

_LARGEST_CARD: Final = 13
_LONGEST_LINE: Final = 120
_NUMBER: Final = r"-?[0-9]{1,9}(?:/[1-9][0-9]{0,8}|\.[0-9]{1,9})?"
_STEP: Final = re.compile(
    rf"({_NUMBER}) ([-+*/]) ({_NUMBER}) = ({_NUMBER}) \(left: ({_NUMBER}(?: {_NUMBER}){{0,3}})\)"
)

# SHA-256, first 8 digits, of the puzzles ranked 901 to 1000 by how hard people find them ("4 5 6
# 10"): the test set of Yao et al. 2023 (arXiv 2305.10601), data/24/24.csv of
# princeton-nlp/tree-of-thought-llm (MIT).
_DIGESTS: Final = """
00881a89 0454ef10 05b0f091 0a9cd5a4 0f57c632 0fa4f8d3 0fefc1f0 11678283 13c4ab0b 1d2d5d83
1eaa56b4 202aee01 22b485c7 24a44013 255f248b 29ab4e77 2b946263 2e04a66f 2f61ed12 3001b3e6
32f1640c 38e2b75a 39199125 396f6a51 39f6b41d 3d7638c0 3f29f2cb 3fd9e061 465448e2 46bb1e94
4a9b713a 544377bb 55a21b30 5c583eb6 60de2814 624f0cd2 629ac3bf 6606dd01 74d36f06 755e4f01
75a2e44b 780c4cb0 7a8dc8d3 7cf9df18 7d956897 7efe6bda 846368ab 893aa838 8943edd4 8b81c1cb
8c9d9d9e 92844835 9481f11a 9a46bd7d a4d9eaa3 a67051f9 a6e6cd3d a819c6c9 aa087e80 aadb30cd
abf095a0 ac96e454 b1c5a34f b48c8409 b6b660a5 b6cb2074 b8f32944 bb224564 bb2325bf bc09c3a9
bf6fed3d c00431a2 c0f0545f c135d3a0 c1ce2fe6 c559840f c5e3ce06 caf53d9e cc19fa9f cca58f5f
ce144bbe ced72f36 cf984b87 d2136462 d351cc0d d4990d1b d6029a14 d72b2874 da407f30 dbf31a51
dc5ccb1a e0bd12ce e3f7863f e5f13cdb eaf25151 eecf8830 f4557848 f4b705ac f9f4359d fa2aedba
"""
_HELD_OUT: Final = frozenset(_DIGESTS.split())


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on two numbers of a state, and the state it leaves."""

    first: int
    sign: str
    second: int
    result: int
    left: Numbers

    @property
    def line(self) -> str:
        """The step as it is written, for example "4 + 5 = 9 (left: 6 9 10)"."""
        return f"{self.first} {self.sign} {self.second} = {self.result} (left: {spell(self.left)})"


def spell(numbers: Iterable[int]) -> str:
    """Write a state, for example "4 5 6 10"."""
    return " ".join(map(str, numbers))


@cache
def steps(numbers: Numbers) -> tuple[Step, ...]:
    """Return the possible next steps, each line once, by position of the pair, then by + * - /."""
    found: list[Step] = []
    for low, high in dict.fromkeys(combinations(numbers, 2)):
        rest = list(numbers)
        rest.remove(low)
        rest.remove(high)
        results = [(low, "+", high, low + high), (low, "*", high, low * high)]
        results.append((high, "-", low, high - low))
        if low and high % low == 0:
            results.append((high, "/", low, high // low))
        found += [Step(a, s, b, c, tuple(sorted([*rest, c]))) for a, s, b, c in results]
    return tuple(found)


@cache
def paths(numbers: Numbers) -> int:
    """Count the sequences of steps that end at 24; 0 where it is out of reach."""
    if len(numbers) == 1:
        return int(numbers[0] == TARGET)
    if len(numbers) == 2:  # Without the steps themselves: there are many of these states.
        low, high = numbers
        ways = low + high, low * high, high - low
        return ways.count(TARGET) + (low > 0 and high == low * TARGET)
    return sum(paths(step.left) for step in steps(numbers))


def judge_state(numbers: Numbers) -> Label:
    """Say "sure" for two next steps or more that keep 24 in reach, "likely" for just one.

    A state of two numbers or one is "sure" where 24 is in reach: nothing is left to go wrong.
    """
    if len(numbers) <= 2:
        return "sure" if paths(numbers) else "impossible"
    good = sum(paths(step.left) > 0 for step in steps(numbers))
    return "sure" if good > 1 else "likely" if good else "impossible"


def random_path(numbers: Numbers, rng: Random) -> tuple[Step, ...]:
    """Draw from the sequences of steps to 24, each as likely; one has to exist."""
    found: list[Step] = []
    while len(numbers) > 1:
        options = steps(numbers)
        (step,) = rng.choices(options, [paths(option.left) for option in options])
        found.append(step)
        numbers = step.left
    return tuple(found)


def expression(numbers: Numbers, path: Iterable[Step]) -> str:
    """Write a path as one expression; every operand that is not a number of the puzzle has parens.

    Of two equal numbers the one that has been there for longer is used.
    """
    parts = [(number, str(number)) for number in numbers]
    text = parts[0][1]
    for step in path:
        operands: list[str] = []
        for value in (step.first, step.second):
            place = next(i for i, part in enumerate(parts) if part[0] == value)
            operands.append(parts.pop(place)[1])
        text = f"{operands[0]} {step.sign} {operands[1]}"
        parts.append((step.result, f"({text})"))
    return text


def _splits(numbers: Numbers) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield the ways to part the numbers in two, the smaller part first."""
    places = range(len(numbers))
    for size in range(1, len(numbers) // 2 + 1):
        for chosen in combinations(places, size):
            rest = tuple(numbers[i] for i in places if i not in chosen)
            yield tuple(numbers[i] for i in chosen), rest


@cache
def _values(numbers: Numbers) -> frozenset[Fraction]:
    """Return all that the numbers can make, fractions and negatives included."""
    if len(numbers) == 1:
        return frozenset({Fraction(numbers[0])})
    found: set[Fraction] = set()
    for some, others in _splits(numbers):
        for a in _values(some):
            for b in _values(others):
                found |= {a + b, a * b, a - b, b - a}
                found |= {x / y for x, y in ((a, b), (b, a)) if y}
    return frozenset(found)


def _solvable(numbers: Numbers) -> bool:
    """Say whether the numbers make 24 at all, by undoing the last operation."""
    for some, others in _splits(numbers):
        reached = _values(others)
        for a in _values(some):
            wanted = {TARGET - a, a - TARGET, a + TARGET}
            if a:
                wanted |= {TARGET / a, a / TARGET, a * TARGET}
            if not wanted.isdisjoint(reached):
                return True
    return False


@cache
def puzzles(split: Split) -> tuple[Numbers, ...]:
    """Return the solvable puzzles of a split, those that need fractions or negatives included."""
    cards = range(1, _LARGEST_CARD + 1)
    found = combinations_with_replacement(cards, 4)
    return tuple(n for n in found if is_held_out(n) == (split == "held_out") and _solvable(n))


def is_held_out(numbers: Numbers) -> bool:
    """Say whether the puzzle, in ascending order, is one of the hundred kept for evaluation."""
    return hashlib.sha256(spell(numbers).encode()).hexdigest()[:8] in _HELD_OUT


@cache
def states(split: Split) -> frozenset[Numbers]:
    """Return every state of three numbers or fewer that steps reach from the split's puzzles."""
    found: set[Numbers] = set()
    reached = set(puzzles(split))
    while reached:
        reached = {step.left for state in reached for step in steps(state)}
        found |= reached
    return frozenset(found)


def is_legal(line: str, numbers: Numbers) -> bool:
    """Say whether a line is an exact step from `numbers`, through fractions or negatives too."""
    match = _STEP.fullmatch(line) if len(line) <= _LONGEST_LINE else None
    if match is None:
        return False
    first, second, result = (Fraction(match[i]) for i in (1, 3, 4))
    before, used = Counter(map(Fraction, numbers)), Counter([first, second])
    if not used <= before or apply(match[2], first, second) != result:
        return False
    return Counter(map(Fraction, match[5].split(" "))) == before - used + Counter([result])


def is_solution(text: str, numbers: Numbers) -> bool:
    """Say whether a text such as "4 * (10 - 6) + 8 = 24" makes 24 of exactly these numbers.

    The part after the equals sign may be missing. Nothing is evaluated but + - * / on integers.
    """
    left, equals, right = text[: _LONGEST_LINE + 1].partition("=")
    if len(text) > _LONGEST_LINE or (equals and right.strip() != str(TARGET)):
        return False
    return makes(left, numbers, TARGET)
