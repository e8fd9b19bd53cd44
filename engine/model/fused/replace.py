"""Puts modules into the places of others."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

from torch import nn

from .bound import BoundModule

Twin = Callable[[nn.Module], nn.Module | None]


def replace(model: nn.Module, twin: Twin) -> int:
    """Put twins in the places of the modules that have one; returns how many twins there are.

    A module that stands in several places has one twin; what is inside a twin is left alone.
    Nothing here keeps a replaced module: its weights are free before the next one's are copied.
    """
    twins: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
    made = 0

    def visit(parent: nn.Module) -> None:
        nonlocal made
        names = [name for name, child in vars(parent)["_modules"].items() if child is not None]
        for name in names:
            child = parent.get_submodule(name)
            found = twins.get(child)
            if found is None:
                found = twin(child)
                if found is None:
                    visit(child)
                    continue
                made += 1
                twins[child] = found
            setattr(parent, name, found)
            if isinstance(parent, BoundModule):
                parent.bind()

    visit(model)
    return made
