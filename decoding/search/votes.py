"""Votes: the model is shown several candidates and says which one is best."""

import re
from collections.abc import Sequence
from typing import Final

VOTE_TOKENS: Final = 128
_CHOICE: Final = re.compile(r"(?:choice|candidate|answer)\D{0,12}([0-9]{1,4})", re.IGNORECASE)
_NUMBER: Final = re.compile(r"(?<![0-9])([0-9]{1,4})(?![0-9])")
_LONGEST: Final = 10_000


def vote_prompt(problem: str, candidates: Sequence[str]) -> str:
    """A question that is answered with the number of a candidate, from 1 on."""
    listed = "\n\n".join(f"Choice {i}:\n{text.strip()}" for i, text in enumerate(candidates, 1))
    return (
        f"{problem}\n\nSeveral answers were given.\n\n{listed}\n\n"
        'Which of them is best? End with "The best choice is", and its number.'
    )


def voted(text: str, count: int) -> int | None:
    """Index of the candidate that a vote is for; None: it names none.

    The last number behind "choice" counts, else the last number.
    """
    text = text[-_LONGEST:]
    found = _CHOICE.findall(text) or _NUMBER.findall(text)
    number = int(found[-1]) if found else 0
    return number - 1 if 1 <= number <= count else None


def count_votes(texts: Sequence[str], count: int) -> list[float]:
    """Votes for each candidate."""
    votes = [0.0] * count
    for text in texts:
        index = voted(text, count)
        if index is not None:
            votes[index] += 1
    return votes
