"""What a kind of problem brings to a search: its prompts, and how to read what comes back."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ..prompts import Prompts

Algorithm = Literal["bfs", "dfs"]
Thoughts = tuple[str, ...]
"""A path through the tree, from its first level."""

MAX_JUDGEMENT: Final = 10_000
"""Characters of a judgement that are looked at, from its end."""

_INDEX: Final = re.compile(r"(?<![0-9])[0-9]{1,5}(?![0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A thought that may come next.

    `confidence`: how sure the model was when it proposed it; None where it was not asked to say.
    """

    text: str
    confidence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a task does where the request does not say.

    `sample_tokens`, `propose_tokens`, `judge_tokens`: longest thought, list of thoughts, judgement.
    `labels`: what judges may say, and what it counts. `prune_below`: of such values, for a
    depth-first search. `stop`: texts that end a sampled thought.
    """

    algorithm: Algorithm
    generate_samples: int
    evaluate_samples: int
    sample_tokens: int
    propose_tokens: int
    judge_tokens: int
    labels: Mapping[str, float]
    prune_below: float
    prompts: Prompts
    stop: tuple[str, ...] = ("\n",)


class Puzzle(ABC):
    """One problem of a task: what is known about paths of thoughts without asking a model.

    All that is here knows nothing of tokens. What models wrote may be any text at all.
    """

    @property
    @abstractmethod
    def depth(self) -> int:
        """Thoughts of a whole solution."""

    @abstractmethod
    def answer(self, thoughts: Thoughts) -> str:
        """The text of the answer that a path gives, wherever it ends."""

    def state(self, thoughts: Thoughts) -> str:
        """Where a path leads, for prompts."""
        return "\n".join(thoughts)

    def read(self, texts: Sequence[str]) -> list[Candidate]:
        """The thoughts that proposals list: lines, unfiltered, as in the paper's runs."""
        return [Candidate(text=line) for text in texts for line in text.split("\n")]

    def legal(self, thoughts: Thoughts) -> bool:
        """Whether the newest thought may follow the others; those that may not are left out."""
        return True

    def finished(self, thoughts: Thoughts) -> bool:
        """Whether no thought is to follow."""
        return False

    def right(self, thoughts: Thoughts) -> bool | None:
        """Whether a finished path solves the problem; None where that cannot be told."""
        return None

    def progress(self, thoughts: Thoughts) -> float:
        """How far a path has come, where that counts for more than its value."""
        return 0.0

    def judged(self, thoughts: Thoughts) -> tuple[str, ...]:
        """The states that are asked about to value a path; most tasks have one."""
        return (self.state(thoughts),)

    def verdict(self, thoughts: Thoughts) -> str | None:
        """The label of a path where it is certain; None where the model is to be asked."""
        return None

    def combine(self, values: Sequence[float]) -> float:
        """The value of a path from those of `judged`."""
        return sum(values)


class Task(ABC):
    """A kind of problem.

    `verbatim`: a sampled solution is itself the answer, not something to put one together from.
    """

    name: str
    defaults: Defaults
    verbatim: bool = False

    @abstractmethod
    def start(self, problem: str) -> Puzzle:
        """The puzzle that a request's prompt poses.

        Raises:
            RequestError: it poses none of this kind.
        """


def plain(text: str) -> str:
    """A label as it is compared: without case, white space around it and the full stop."""
    return text.strip().strip("*\"'`.,!").strip().casefold()


def read_label(text: str, labels: Mapping[str, float]) -> str | None:
    """The label that a judgement's last line is or ends with; of several the longest."""
    lines = text[-MAX_JUDGEMENT:].rstrip().rpartition("\n")
    last = plain(lines[2])
    found: str | None = None
    for label in labels:
        wanted = plain(label)
        ends = last.endswith(wanted) and not last[: -len(wanted)][-1:].isalnum()
        if ends and (found is None or len(wanted) > len(plain(found))):
            found = label
    return found


def read_vote(text: str, count: int) -> int | None:
    """The place, from 0, of the candidate that a vote's last number names."""
    named = _INDEX.findall(text[-MAX_JUDGEMENT:])
    if not named or not 1 <= int(named[-1]) <= count:
        return None
    return int(named[-1]) - 1
