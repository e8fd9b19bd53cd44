"""What every ability's generator yields: a conversation, and a grader of other answers to it."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

HELD_OUT_ONE_IN: Final = 20
Split = Literal["train", "held_out"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of a conversation, without the markers that the chat template puts around it."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A conversation that ends with the right answer, and the grader of any other answer to it.

    `grade` maps an answer's text to named scores between 0 and 1; the scores of an ability are the
    means over its examples. `tags` name the groups whose means are reported too, for example
    "1000-1500 tokens" or "depth 25-50%".
    """

    turns: tuple[Turn, ...]
    grade: Callable[[str], Mapping[str, float]]
    tags: tuple[str, ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        """What a client sends to be answered: every turn but the last."""
        return [{"role": turn.role, "content": turn.text} for turn in self.turns[:-1]]

    @property
    def answer(self) -> str:
        """The right answer, or one of them."""
        return self.turns[-1].text


def is_held_out(combination: str) -> bool:
    """Say whether examples of `combination` are kept for evaluation: one in twenty is.

    Depends on nothing but the name, so that no training example can tell of a held-out one.
    """
    return hashlib.sha256(combination.encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def ask(question: str, answer: str) -> tuple[Turn, Turn]:
    """Return a question of the user and the answer to it."""
    return Turn(role="user", text=question), Turn(role="assistant", text=answer)
