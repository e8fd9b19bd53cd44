"""Puts modules into the places of others."""

from collections.abc import Callable

from torch import nn


def replace(model: nn.Module, twin: Callable[[nn.Module], nn.Module | None]) -> int:
    """Put twins in the places of the modules that have one; returns how many were replaced.

    A module that stands in several places has one twin; what is inside a twin is left alone.
    """
    twins: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            found = twins.get(child) or twin(child)
            if found is not None:
                twins[child] = found
                setattr(parent, name, found)
    return len(twins)
