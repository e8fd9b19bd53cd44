"""The seams of decoding: what a method is, and which slot it fills.

A request combines at most one method per slot. The methods know neither pages nor the model.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

Slot = Literal["target", "drafter", "controller"]
"""target: the distribution of a row. drafter: which extra rows are verified. controller: which
sequences live."""


class NoParameters(BaseModel):
    """Parameters of a method that has none."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingMethod:
    """A decoding method as requests see it.

    `parameters`: pydantic model of the request's object; unknown fields forbidden, all bounded.
    `summary`: one sentence for people who list the methods.
    """

    name: str
    slot: Slot
    parameters: type[BaseModel]
    summary: str
