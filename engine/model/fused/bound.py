"""Modules that call their parts without the overhead of `nn.Module.__call__`."""

from collections.abc import Callable
from typing import Any

from torch import nn


class BoundModule(nn.Module):
    """Has `self.calls[name]`: the forward function of each part; hooks do not run.

    A module call and the look-up of a part cost a microsecond each, hundreds of times a step.
    """

    calls: dict[str, Callable[..., Any]]

    def bind(self) -> None:
        """Look the parts up; called again whenever `replace` has replaced one."""
        parts = {name: part for name, part in self._modules.items() if part is not None}
        self.calls = {name: part.forward for name, part in parts.items()}
