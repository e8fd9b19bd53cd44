"""Modules that call their parts without the overhead of `nn.Module.__call__`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from ...adapters.sites import Origin


class BoundModule(nn.Module):
    """Has `self.calls[name]`: the forward function of each part; hooks do not run.

    A module call and the look-up of a part cost a microsecond each, hundreds of times a step.
    It stands in the place of an original module. `original_names`: those that parts had in it,
    where they were others. `merged`: parts that are made of several layers, or have their outputs
    in another order.
    """

    calls: dict[str, Callable[..., Any]]
    original_names: Mapping[str, str] = MappingProxyType({})
    merged: Mapping[str, tuple[Origin, ...]] = MappingProxyType({})

    def bind(self) -> None:
        """Look the parts up; called again whenever `replace` has replaced one."""
        parts = {name: part for name, part in self._modules.items() if part is not None}
        self.calls = {name: part.forward for name, part in parts.items()}
