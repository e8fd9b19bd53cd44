"""Answers that began wrong, and the way on from there.

Documents of a corpus are right to their last token, so a model learns nothing of what follows a
mistake of its own, and the likeliest token after one is often more of the same, without end. Here
an answer begins as such an answer does and stands in the text without being learned; what is
learned is to go on, and to end (after Ross et al. 2011, DAgger, arXiv:1011.0686, and Bengio et al.
2015, scheduled sampling, arXiv:1506.03099).
"""

import math
import re
from collections.abc import Callable
from random import Random
from typing import Final

from ..abilities import copying, extraction, game24, rewriting, translation
from ..abilities.arithmetic24 import TARGET, puzzles, steps
from ..abilities.example import Example, Split, ask

Maker = Callable[[Random, Split], Example]
LEARNED_FROM_HERE: Final = "\x1f"
"""Stands once in an answer; what comes before it in the answer is not learned."""

_WORD: Final = re.compile(r"[A-Za-z_]\w*|\d+")
_MOST_REPEATS: Final = 5
_LONGEST_STUTTER: Final = 24
_PART: Final = re.compile(r"(?:,| [-+*/=])? ?[A-Za-z]+|_[A-Za-z]+|(?:,| [-+*/=])? ?\d+")
"""A word with what joins it to the one before: ` / 168`, `_key`."""
_LONGEST_PART: Final = 20
_LONGEST_RUN: Final = 600
_EXACT: Final = (rewriting, rewriting, extraction, copying, translation)


def missed_solution(rng: Random, split: Split) -> Example:
    """Return a puzzle and three or more steps that miss 24; the answer says so and ends."""
    while True:
        numbers = state = rng.choice(puzzles(split))
        lines: list[str] = []
        while len(state) > 1:
            step = rng.choice(steps(state))
            lines.append(step.line)
            state = step.left
        left = sum(state)  # one number, by now
        if left != TARGET:
            break
    if rng.random() < 0.3:  # a list of steps, as other questions want it
        lines += _again(lines, rng)
    question = game24.solve_question(numbers, rng)
    return _answered(question, "\n".join(lines), f"\nThat makes {left}, not {TARGET}.")


def steps_with_repeats(rng: Random, split: Split) -> Example:
    """Return a state and its next steps, lines of which come wrong or again."""
    found = game24.propose(rng, split)
    return _stumbled(found, rng)


def code_with_repeats(rng: Random, split: Split) -> Example:
    """Return code to rewrite, and new code with lines or names that come wrong or again."""
    found = rewriting.example(rng, split)
    return _stuttered(found, rng) if rng.random() < 0.25 else _stumbled(found, rng)


def without_end(rng: Random, split: Split) -> Example:
    """Return an answer that is cut where a part of it, or a word of its question, came many times.

    Lines before may hold words that are wrong.
    """
    make = rng.choice((game24.solve, game24.propose, *(m.example for m in _EXACT)))
    found = make(rng, split)
    question, answer = found.turns[0].text, found.answer
    place = rng.choice(list(_PART.finditer(answer)))
    end = place.end()
    part = rng.choice(
        (
            place.group(),
            place.group(),
            answer[max(0, end - rng.randint(1, _LONGEST_PART)) : end],
            rng.choice(_WORD.findall(question)),
        )
    )
    most = max(1, _LONGEST_RUN // len(part))
    times = round(math.exp(rng.uniform(0, math.log(most))))
    *before, line = answer[:end].split("\n")
    begun = [*(_confused(each, answer, rng) for each in before), line]
    return _answered(question, "\n".join(begun) + part * times, answer[end:])


def _answered(question: str, begun: str, rest: str) -> Example:
    turns = ask(question, f"{begun}{LEARNED_FROM_HERE}{rest}")
    return Example(turns=turns, grade=lambda _: {})


def _stumbled(found: Example, rng: Random) -> Example:
    """Cut the answer after some line; before the cut words are confused and lines come again."""
    lines = found.answer.split("\n")
    cut = rng.choice((rng.randint(1, len(lines)), len(lines)))
    begun = [_confused(line, found.answer, rng) for line in lines[:cut]]
    begun += _again(begun, rng)
    rest = "".join(f"\n{line}" for line in lines[cut:])
    return _answered(found.turns[0].text, "\n".join(begun), rest)


def _again(lines: list[str], rng: Random) -> list[str]:
    """Return the last one to four lines, several times, or nothing."""
    period = rng.choice((1, 1, 1, 2, 3, 4))
    return lines[-period:] * rng.choice((0, *range(_MOST_REPEATS + 1)))


def _confused(line: str, answer: str, rng: Random) -> str:
    """Return the line, in one of three with a word of it replaced by another of the answer."""
    words = list(_WORD.finditer(line))
    if not words or rng.random() < 2 / 3:
        return line
    word = rng.choice(words)
    other = rng.choice(_WORD.findall(answer))
    return line[: word.start()] + other + line[word.end() :]


def _stuttered(found: Example, rng: Random) -> Example:
    """Cut the answer within a line, after a word whose last letter or whole came many times."""
    word = rng.choice(list(_WORD.finditer(found.answer)))
    text = word.group()
    times = rng.randint(1, _LONGEST_STUTTER)
    begun = rng.choice((text + text[-1] * times, "_".join([text] * (1 + times // 3))))
    return _answered(
        found.turns[0].text, found.answer[: word.start()] + begun, found.answer[word.end() :]
    )
