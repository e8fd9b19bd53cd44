"""The interface of tasks: prompts for a kind of problem, and parsers for what models write."""

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
"""Characters of a judgement that are read, from its end."""

_INDEX: Final = re.compile(r"(?<![0-9])[0-9]{1,5}(?![0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A thought that may come next.

    `confidence`: how sure the model said it was; None if it was not asked to say.
    """

    text: str
    confidence: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """A task's values for parameters that the request leaves out.

    `sample_tokens`, `propose_tokens`, `judge_tokens`: longest thought, list of thoughts, judgement.
    `labels`: answers of a judgement and their values. `prune_below`: the bound on such values in a
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
    """One problem of a task: what can be said about paths of thoughts without asking a model.

    It works on texts, not on tokens, and must accept any text that a model may write.
    """

    @property
    @abstractmethod
    def depth(self) -> int:
        """Number of thoughts in a whole solution."""

    @abstractmethod
    def answer(self, thoughts: Thoughts) -> str:
        """The text of the answer that a path gives, complete or not."""

    def state(self, thoughts: Thoughts) -> str:
        """The state that a path leads to, as prompts show it."""
        return "\n".join(thoughts)

    def read(self, texts: Sequence[str]) -> list[Candidate]:
        """The thoughts that proposals list: every line, unfiltered, as in the paper's runs."""
        return [Candidate(text=line) for text in texts for line in text.split("\n")]

    def legal(self, thoughts: Thoughts) -> bool:
        """Whether the newest thought may follow the others; those that may not are left out."""
        return True

    def finished(self, thoughts: Thoughts) -> bool:
        """Whether a path is complete, so that no thought follows."""
        return False

    def right(self, thoughts: Thoughts) -> bool | None:
        """Whether a finished path solves the problem; None if that cannot be told."""
        return None

    def progress(self, thoughts: Thoughts) -> float:
        """How far a path has come, in tasks where that ranks before its value."""
        return 0.0

    def judged(self, thoughts: Thoughts) -> tuple[str, ...]:
        """The states to ask the model about in order to value a path; in most tasks one."""
        return (self.state(thoughts),)

    def verdict(self, thoughts: Thoughts) -> str | None:
        """The label of a path if it is certain; None if the model has to be asked."""
        return None

    def combine(self, values: Sequence[float]) -> float:
        """The value of a path from those of `judged`."""
        return sum(values)


class Task(ABC):
    """A kind of problem.

    `verbatim`: a sampled solution is itself the answer; otherwise `Puzzle.answer` composes it.
    """

    name: str
    defaults: Defaults
    verbatim: bool = False

    @abstractmethod
    def start(self, problem: str) -> Puzzle:
        """The puzzle that a request's prompt poses.

        Raises:
            RequestError: the prompt poses no problem of this kind.
        """


def plain(text: str) -> str:
    """A label as it is compared: without case, and without blanks and punctuation around it."""
    return text.strip().strip("*\"'`.,!").strip().casefold()


def read_label(text: str, labels: Mapping[str, float]) -> str | None:
    """The label that a judgement's last line ends with; of several the longest."""
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
    """Index of the candidate that a vote's last number, from 1, names; None if there is none."""
    named = _INDEX.findall(text[-MAX_JUDGEMENT:])
    if not named or not 1 <= int(named[-1]) <= count:
        return None
    return int(named[-1]) - 1
