"""Makes a served model take adapters: which of its layers can, and an adapter as they take it."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from ...kernels.linear.low_rank import LowRank, PackedAdapter
from ...kernels.native.library import Library, library
from ..adapters.attached import AttachedAdapter, AttachedLinear, attached_pair
from ..adapters.sites import Site, check_names
from ..adapters.step import StepAdapters
from ..adapters.store import Prepared
from ..adapters.weights import AdapterWeights
from .fused.bound import BoundModule
from .fused.compiled import CompiledDecoder
from .fused.observe import DenseStep
from .fused.origins import Place, linear_places

Prepare = Callable[[AdapterWeights], Prepared]
"""Raises ConfigurationError where an adapter is not for the model."""
_TOKENS: Final = 31
_WANTED: Final = 29
"""Of a pass that finds out which rows a layer sees: all, or those whose logits are wanted. Odd, and
more than an expert of a mixture is likely to be given."""


def take_adapters(
    model: nn.Module, device: torch.device, dtype: torch.dtype
) -> tuple[StepAdapters, Prepare]:
    """What tells the model which rows have which adapter, and what prepares one for its layers.

    Layers of a model that is not compiled as a whole are replaced by ones that add the share.
    """
    found = library()
    compiled = found if isinstance(found, Library) else None
    if isinstance(model, CompiledDecoder):
        assert compiled is not None
        return model.step_adapters, _packing(model.sites, compiled)
    step = StepAdapters()
    sites = _attach(model, step, device)
    like = torch.empty(0, device=device, dtype=dtype)
    fits = device.type == "cpu" and dtype == torch.float32
    return step, _attaching(sites, compiled if fits else None, like)


def _packing(sites: list[Site], compiled: Library) -> Prepare:
    def prepare(adapter: AdapterWeights) -> PackedAdapter:
        check_names(adapter, sites)
        return PackedAdapter(
            [LowRank(compiled, site.shares(adapter), site.outputs) for site in sites]
        )

    return prepare


def _attaching(sites: dict[int, Site], compiled: Library | None, like: Tensor) -> Prepare:
    def prepare(adapter: AdapterWeights) -> AttachedAdapter:
        check_names(adapter, list(sites.values()))
        shares = {number: site.shares(adapter) for number, site in sites.items()}
        return AttachedAdapter(
            {
                number: attached_pair(found, sites[number].outputs, compiled, like)
                for number, found in shares.items()
                if found
            }
        )

    return prepare


def _attach(model: nn.Module, step: StepAdapters, device: torch.device) -> dict[int, Site]:
    """Replace the layers that see all rows of a step, those and no others; sites by number.

    Experts of mixtures see the rows that are theirs, in an order of their own.
    """
    places = list(linear_places(model))
    layers: list[AttachedLinear] = []
    for number, place in enumerate(places):
        layer = AttachedLinear(place.parent.get_submodule(place.name), number, step)
        layers.append(layer)
        _put(place, layer)
    _try(model, device)
    sites: dict[int, Site] = {}
    for place, layer in zip(places, layers, strict=True):
        if layer.rows in (_TOKENS, _WANTED):
            layer.is_head = layer.rows == _WANTED
            sites[layer.number] = place.site
        else:
            _put(place, layer.inner)
    return sites


def _put(place: Place, layer: nn.Module) -> None:
    setattr(place.parent, place.name, layer)
    if isinstance(place.parent, BoundModule):
        place.parent.bind()


@torch.inference_mode()
def _try(model: nn.Module, device: torch.device) -> None:
    """One pass, so that each layer knows how many rows it sees."""
    numbers = torch.arange(_TOKENS, device=device)
    model(
        input_ids=numbers[None],
        position_ids=numbers[None],
        use_cache=False,
        logits_to_keep=numbers[-_WANTED:],
        penstock_step=DenseStep(),
    )
