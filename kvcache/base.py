"""The seam of cache policies: what a request may ask the KV cache to keep."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict


class NoParameters(BaseModel):
    """Parameters of a policy that has none."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """A cache policy as requests see it; a request has exactly one (`slot` is the same for all)."""

    name: str
    parameters: type[BaseModel]
    summary: str
    slot: Literal["policy"] = "policy"
