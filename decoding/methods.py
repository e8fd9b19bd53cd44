"""The decoding methods that one request combines: at most one in each slot."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, cast

from ..registry import Choice
from .base import DecodingMethod
from .drafting.base import Drafter
from .prefill import Prefill
from .search.base import Controller
from .target import Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Methods:
    """The methods of one request by slot; None: the slot is empty."""

    prefill: Choice[Prefill[Any]] | None = None
    target: Choice[Target[Any]] | None = None
    drafter: Choice[Drafter[Any]] | None = None
    controller: Choice[Controller[Any]] | None = None

    @classmethod
    def of(cls, choices: Iterable[Choice[DecodingMethod[Any]]]) -> "Methods":
        """What a registry resolved: at most one choice for each slot."""
        return cls(**cast("dict[str, Any]", {each.method.slot: each for each in choices}))

    @property
    def chosen(self) -> tuple[Choice[DecodingMethod[Any]], ...]:
        """The methods of the slots that are filled."""
        every = (getattr(self, slot.name) for slot in fields(self))
        return tuple(choice for choice in every if choice is not None)


NO_METHODS = Methods()
