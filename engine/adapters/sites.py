"""The linear layers of a served model, and where the outputs of the original layers are in them.

Layers are merged (queries, keys and values) and their outputs reordered when a model is rewritten.
An adapter speaks of the layers as the model's authors named them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ConfigurationError
from ...kernels.linear.low_rank import Share
from .weights import AdapterWeights

_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Origin:
    """An original layer: `at`, int64 `[n]`, says where its outputs are among the served layer's."""

    name: str
    at: Tensor

    def inside(self, name: str) -> "Origin":
        """The same, its name relative to the module of that name."""
        return Origin(name=f"{name}.{self.name}" if name else self.name, at=self.at)


def original(name: str, outputs: int) -> tuple[Origin]:
    """Of a layer that is as it was."""
    return (Origin(name=name, at=torch.arange(outputs)),)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Site:
    """A linear layer `[outputs, inputs]` of the served model, and the original layers in it."""

    inputs: int
    outputs: int
    origins: tuple[Origin, ...]

    def shares(self, adapter: AdapterWeights) -> list[Share]:
        """What an adapter adds to this layer.

        Raises:
            ConfigurationError: its matrices have other shapes than this model's layer.
        """
        found: list[Share] = []
        for origin in self.origins:
            pair = adapter.layers.get(origin.name)
            if pair is None:
                continue
            given = (pair.up.shape[0], pair.down.shape[1])
            if given != (len(origin.at), self.inputs):
                raise ConfigurationError(
                    f"{adapter.source}: {origin.name} is for a layer of {given[1]} inputs and "
                    f"{given[0]} outputs, and the model's has {self.inputs} and {len(origin.at)}"
                )
            found.append(Share(down=pair.down, up=pair.up, at=origin.at))
        return found


def check_names(adapter: AdapterWeights, sites: Sequence[Site]) -> None:
    """Raise ConfigurationError where an adapter speaks of layers that no site has."""
    known = {origin.name for site in sites for origin in site.origins}
    unknown = sorted(adapter.layers.keys() - known)
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise ConfigurationError(
            f"{adapter.source}: the model has no linear layer {', '.join(unknown[:_SHOWN])}{more} "
            "that adapters can change"
        )


def reordered(origins: Sequence[Origin], sources: Tensor) -> tuple[Origin, ...]:
    """Origins after outputs were reordered: output i is now what number `sources[i]` was.

    Of outputs that are there several times the first counts.
    """
    now = torch.empty(int(sources.max()) + 1, dtype=torch.int64)
    now[sources.flip(0)] = torch.arange(len(sources)).flip(0)
    return tuple(Origin(name=origin.name, at=now[origin.at]) for origin in origins)
