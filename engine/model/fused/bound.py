"""Modules that call their parts without what `nn.Module.__call__` does around it."""

from collections.abc import Callable
from typing import Any

from torch import nn


class BoundModule(nn.Module):
    """Has `self.calls[name]`: the forward function of each part; no hooks run on the way.

    A module call and a look-up of a part cost a microsecond each, some hundred times a step.
    """

    calls: dict[str, Callable[..., Any]]

    def bind(self) -> None:
        """Look the parts up; again whenever one has been replaced (`replace` sees to it)."""
        parts = {name: part for name, part in self._modules.items() if part is not None}
        self.calls = {name: part.forward for name, part in parts.items()}
