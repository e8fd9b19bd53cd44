"""The board of a 5x5 crossword: its letters, the status of each clue, and its text format.

The format is that of the logged boards of Yao et al. 2023 (arXiv:2305.10601).
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

SIDE: Final = 5
BLANK: Final = "_"
PLACES: Final = tuple(f"{way}{line}" for way in "hv" for line in range(1, SIDE + 1))
"""h1 to h5 are the rows, v1 to v5 the columns."""

Status = Literal["unfilled", "filled", "changed"]

_ACTION: Final = re.compile(r"([hv][1-5])\. ([A-Za-z]{5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """`letters`: 25, row by row. `statuses`: of each place; "changed": a letter was overwritten."""

    letters: str = BLANK * SIDE**2
    statuses: tuple[Status, ...] = ("unfilled",) * len(PLACES)

    @property
    def words(self) -> tuple[str, ...]:
        """The letters at each place."""
        rows = [self.letters[i * SIDE : (i + 1) * SIDE] for i in range(SIDE)]
        return (*rows, *(self.letters[i::SIDE] for i in range(SIDE)))

    @property
    def changed(self) -> bool:
        """Whether a word has overwritten a letter."""
        return "changed" in self.statuses

    def place(self, action: str) -> "Board | None":
        """The board after an action such as "h1. apple"; None if it is not an action."""
        match = _ACTION.fullmatch(action)
        if match is None:
            return None
        place, word = PLACES.index(match[1]), match[2].upper()
        letters = list(self.letters)
        line = place % SIDE
        across = slice(line * SIDE, (line + 1) * SIDE)
        letters[across if place < SIDE else slice(line, None, SIDE)] = word
        after = Board(letters="".join(letters))
        statuses: list[Status] = [
            "changed" if _lost(old, new) else status
            for old, new, status in zip(self.words, after.words, self.statuses, strict=True)
        ]
        statuses[place] = "filled"
        return Board(letters=after.letters, statuses=tuple(statuses))

    def clue(self, place: int, clues: tuple[str, ...]) -> str:
        """A clue with its letters, for example "v1. To heap: TM___"."""
        return f"{PLACES[place]}. {clues[place]}: {self.words[place]}"

    def render(self, clues: tuple[str, ...]) -> str:
        """The rows, and the clues sorted by status."""
        rows = "".join(f"{row}\n" for row in self.words[:SIDE])
        text = f"Current Board:\n{rows}"
        for status in ("unfilled", "filled", "changed"):
            places = [i for i in range(len(PLACES)) if self.statuses[i] == status]
            lines = "".join(f"{self.clue(i, clues)}\n" for i in places)
            text += f"\n{status.capitalize()}:\n{lines}"
        return text


def _lost(old: str, new: str) -> bool:
    return any(a not in (BLANK, b) for a, b in zip(old, new, strict=True))
