"""Draft tokens of speculative decoding, and the rows of the pass that verifies them.

A pass over [newest token, draft tokens] predicts what follows each of them. The draft tokens that
agree with the predictions, from the newest token on, are what sequential decoding would have
chosen, and the prediction after the last of them is one more token (docs/decoding/README.md)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, overload

from ..sampling import Row, Sampling

if TYPE_CHECKING:
    from ..rule_state import RuleState


@dataclass(frozen=True, slots=True)
class Draft:
    """A tree of draft tokens below the sequence's newest token; a chain where `parents` is None.

    `tokens[i]` follows `tokens[parents[i]]`, or the newest token where that is -1. Parents stand
    before their children.
    """

    tokens: list[int]
    parents: list[int] | None = None
    depths: list[int] = field(init=False)
    """How many tokens ahead each draft token is; those at 1 follow the newest token."""

    def __post_init__(self) -> None:
        if self.parents is None:
            depths = list(range(1, len(self.tokens) + 1))
        else:
            depths = []
            for parent in self.parents:
                depths.append(1 if parent < 0 else depths[parent] + 1)
        object.__setattr__(self, "depths", depths)

    def path(self, index: int) -> list[int]:
        """The draft tokens on the path to number `index`, that one included."""
        if self.parents is None:
            return self.tokens[: index + 1]
        found: list[int] = []
        while index >= 0:
            found.append(self.tokens[index])
            index = self.parents[index]
        return found[::-1]

    def line(self) -> "Draft":
        """The first path of the tree, as a chain."""
        if self.parents is None:
            return self
        at, tokens = -1, list[int]()
        for index, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            if parent == at:
                tokens.append(token)
                at = index
        return Draft(tokens)

    def accepted(self, predictions: Sequence[int]) -> list[int]:
        """Indices of the draft tokens that are right, along one path.

        `predictions[0]` follows the newest token, `predictions[1 + i]` draft token i.
        """
        if self.parents is None:
            count = 0
            for draft_token, predicted in zip(self.tokens, predictions, strict=False):
                if draft_token != predicted:
                    break
                count += 1
            return list(range(count))
        children: dict[tuple[int, int], int] = {}
        for index, (parent, token) in enumerate(zip(self.parents, self.tokens, strict=True)):
            children.setdefault((parent, token), index)
        found: list[int] = []
        at: int | None = -1
        while (at := children.get((at, predictions[at + 1]))) is not None:
            found.append(at)
        return found


class Continued(Sequence[int]):
    """A sequence's `tokens` and a `path` of draft tokens; joined only when they are read."""

    __slots__ = ("path", "tokens")

    def __init__(self, tokens: Sequence[int], path: Sequence[int]) -> None:
        self.tokens = tokens
        self.path = path

    def __len__(self) -> int:
        return len(self.tokens) + len(self.path)

    def __iter__(self) -> Iterator[int]:
        return chain(self.tokens, self.path)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        before = len(self.tokens)
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            assert step == 1, "nobody reads a history backwards"
            behind = self.path[max(0, start - before) : max(0, stop - before)]
            return [*self.tokens[start:stop], *behind] if start < before else list(behind)
        position = range(len(self))[index]
        return self.tokens[position] if position < before else self.path[position - before]


@dataclass(slots=True, kw_only=True, eq=False)
class DraftedRow:
    """The row of one draft token, as the sampler sees it: its history ends with that token.

    `parent`: the row of the token before it; None where nothing reads it.
    """

    sampling: Sampling
    tokens: Sequence[int]
    prompt_length: int
    answer_start: int
    parent: "Row | None" = None
    rule_state: "RuleState | None" = None


def drafted_rows(row: Row, draft: Draft) -> list[Row]:
    """The rows that predict what follows the newest token and each draft token, in that order."""
    rows = [row]
    for i in range(len(draft.tokens)):
        before = i - 1 if draft.parents is None else draft.parents[i]
        rows.append(
            DraftedRow(
                sampling=row.sampling,
                tokens=Continued(row.tokens, draft.path(i)),
                prompt_length=row.prompt_length,
                answer_start=row.answer_start,
                parent=rows[before + 1],
            )
        )
    return rows
