"""The interface of targets: what distribution a row has."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol

from .base import DecodingMethod, P, Slot

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


class Prompt(Protocol):
    """A request's prompt, for targets that derive the prompts of further contexts from it."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Its tokens."""
        ...

    @property
    def text(self) -> str:
        """Its text, special tokens included."""
        ...

    def encode(self, text: str, *, param: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Tokens of a further prompt; a RequestError names `param` if it is empty or too long."""
        ...

    def render(self, messages: Sequence[Mapping[str, str]], *, param: str) -> tuple[int, ...]:
        """Tokens of a chat, formatted by the model's template, ready for the assistant's answer."""
        ...


class Target(DecodingMethod[P]):
    """Makes a row's distribution from the model's logits in one or several contexts.

    Every accepted token is appended to all contexts, so they all end with the same answer.
    """

    slot: Slot = "target"

    @abstractmethod
    def contexts(self, parameters: P, prompt: Prompt) -> tuple[tuple[int, ...], ...] | None:
        """The prompts of the further contexts; None where the parameters change nothing at all.

        Raises:
            RequestError: a field asks for what the model cannot do.
        """

    def prompt_field(self, parameters: P) -> str | None:
        """The parameter that further prompts come from; errors about them name it."""
        return None

    @abstractmethod
    def combine(self, logits_BRV: Tensor, parameters: Sequence[P]) -> Tensor:
        """New logits `[R, V]`, float32, for R rows at once.

        `logits_BRV`: float32; context 0 is the request's own. `parameters`: one for each row.
        All rows have the same number of contexts. A row's result depends on that row alone. NaN in
        a row's logits must stay NaN; minus infinity (a token that the model rules out) must not
        become NaN.
        """
