"""Which original layers the linear layers of a rewritten model are made of.

A `BoundModule` says what its parts were called; all other modules have kept their names.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from ...adapters.sites import Site, original
from .bound import BoundModule


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Place:
    """Where a linear layer is: `name` in `parent`."""

    parent: nn.Module
    name: str
    site: Site


def linear_places(model: nn.Module, name: str = "") -> Iterator[Place]:
    """All linear layers that are called as modules, however they are kept."""
    bound = model if isinstance(model, BoundModule) else BoundModule()
    for own, child in model.named_children():
        origin = ".".join(filter(None, (name, bound.original_names.get(own, own))))
        size = _size(child)
        if size is None:
            yield from linear_places(child, origin)
            continue
        inputs, outputs = size
        inside = tuple(each.inside(name) for each in bound.merged.get(own, ()))
        origins = inside or original(origin, outputs)
        yield Place(
            parent=model, name=own, site=Site(inputs=inputs, outputs=outputs, origins=origins)
        )


def _size(module: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer; None: it is something else."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    size = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return size if all(isinstance(each, int) for each in size) else None  # pyright: ignore[reportReturnType]
