"""Replaces modules inside a model."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

from torch import nn

from .bound import BoundModule

Replacer = Callable[[nn.Module], nn.Module | None]


def replace(model: nn.Module, replacer: Replacer) -> int:
    """Replace each module for which `replacer` returns a new one; returns how many were made.

    A module used in several places gets one replacement; modules inside a replacement are not
    visited. Replaced modules are not kept: their weights are freed before the next are copied.
    """
    replacements: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
    made = 0

    def visit(parent: nn.Module) -> None:
        nonlocal made
        names = [name for name, child in vars(parent)["_modules"].items() if child is not None]
        for name in names:
            child = parent.get_submodule(name)
            found = replacements.get(child)
            if found is None:
                found = replacer(child)
                if found is None:
                    visit(child)
                    continue
                made += 1
                replacements[child] = found
            setattr(parent, name, found)
            if isinstance(parent, BoundModule):
                parent.bind()

    visit(model)
    return made
