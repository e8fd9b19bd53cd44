"""A decoding method as requests see it, and the slots that methods fill.

A request combines at most one method per slot. Methods know neither pages nor the model. Each slot
has an interface of its own: `prefill.py`, `target.py`, `drafting/base.py`, `search/base.py`.
"""

from abc import ABC
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel

Slot = Literal["prefill", "target", "drafter", "controller"]
SLOTS: dict[Slot, str] = {
    "prefill": "which keys the rows of a prompt see",
    "target": "what distribution a row has",
    "drafter": "which draft tokens are verified beside the newest token",
    "controller": "which sequences live",
}

P = TypeVar("P", bound=BaseModel)


class DecodingMethod(ABC, Generic[P]):
    """A decoding method as requests see it.

    `parameters`: pydantic model of the request's object; unknown fields forbidden, all bounded.
    `summary`: one sentence for people who list the methods.
    """

    name: str
    slot: Slot
    parameters: type[BaseModel]
    summary: str
