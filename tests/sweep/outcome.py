"""What became of one model type."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """`SERVED`: every answer was equal. `REFUSED`: at start, by name. `UNBUILDABLE`: not tried."""

    SERVED = "served"
    REFUSED = "refused"
    UNBUILDABLE = "unbuildable"
    FAULT = "FAULT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`reason`: why not, or what was wrong; of one that is served, a remark."""

    model_type: str
    kind: Kind
    reason: str = ""
    seconds: float = 0.0

    def line(self) -> str:
        """One line for people."""
        of = f": {self.reason}" if self.reason else ""
        return f"{self.model_type}: {self.kind}{of} ({self.seconds:.0f} s)"
