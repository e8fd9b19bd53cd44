"""Which adapter the rows of the running step have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class StepAdapters:
    """The runner sets it before a pass over the model, whose layers read it.

    `of_rows`: the adapter of each row, None where a row has none; None: no row has one. Rows are
    those of the step, in its order. `of_wanted`: the same of the rows whose logits are wanted; the
    head sees no others.
    """

    of_rows: Sequence[Any] | None = None
    of_wanted: Sequence[Any] | None = None

    def begin(self, of_rows: Sequence[Any], wanted: Sequence[int]) -> None:
        """The adapters of a step's rows; `wanted`: numbers of those whose logits are wanted."""
        if any(adapter is not None for adapter in of_rows):
            self.of_rows, self.of_wanted = of_rows, [of_rows[row] for row in wanted]

    def end(self) -> None:
        """Forget them: dropped adapters' memory is free once their last step has ended."""
        self.of_rows = self.of_wanted = None
