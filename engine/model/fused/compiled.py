"""A decoder whose layers are compiled code (C++): most steps are one call for all layers."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from ....kernels.decoder.native import LayerWeights, NativeLayers, RMSNorm, interleaved
from ....kernels.linear.native import NativeEmbedding, Packed
from ....kernels.native.library import Library
from ...adapters.sites import Site, reordered
from ...adapters.step import StepAdapters
from ...attention.interface import PagedStep
from ...weights.base import Pack, WeightFormat
from ...weights.blocks import pack_numbers
from .attention import FusedAttention, FusedRotary
from .decoder import FusedDecoder, FusedLayer, Output
from .feed_forward import FusedFeedForward
from .norms import FusedRMSNorm
from .origins import linear_places

logger = logging.getLogger(__name__)


class CompiledDecoder(nn.Module):
    """Embedding and rotation are the model's own; layers, norm and head are compiled.

    `sites`: the linear layers as adapters count them. `step_adapters`: of the rows of each call.
    """

    def __init__(
        self,
        embedding: nn.Module,
        rotary: FusedRotary,
        layers: NativeLayers,
        options: list[tuple[int, dict[str, Any]]],
        sites: list[Site],
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.rotary = rotary
        self.sites = sites
        self.step_adapters = StepAdapters()
        self._layers = layers
        self._options = options

    @property
    def scores(self) -> bool:
        """Whether `run` can tell what keys receive."""
        return self._layers.scores

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that every step reads: of the embedding it reads some rows."""
        return sum(each.stored_bytes for each in self._layers.packed)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all weights; the head's count once where the embedding shares them."""
        packed = self._layers.packed
        if isinstance(self.embedding, NativeEmbedding):
            packed = {*packed, self.embedding.packed}
        return sum(each.stored_bytes for each in packed)

    def forward(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor,
        logits_to_keep: Tensor,
        penstock_step: Any,
        **_: Any,
    ) -> Output:
        """As the forward pass of the original model."""
        hidden = self.embedding.forward(input_ids)
        factors, _same = self.rotary.forward(hidden, position_ids=position_ids)
        layers, adapters = self._layers, self.step_adapters.of_rows
        if isinstance(penstock_step, PagedStep) and penstock_step.in_one_call:
            store = penstock_step.store
            step = layers.step(hidden[0], factors, penstock_step.batch, adapters)
            caches = [*zip(store.keys, store.values, strict=True)]
            layers.run(step, caches, penstock_step.evicting)
        else:
            step = layers.step(hidden[0], factors, None, adapters)
            for index, (layer, options) in enumerate(self._options):
                attended = penstock_step(layer, *layers.before_attention(step, index), **options)
                layers.after_attention(step, index, attended)
        return Output(layers.logits(step, logits_to_keep)[None])


def compiled_decoder(
    library: Library, model: nn.Module, weights: WeightFormat
) -> CompiledDecoder | None:
    """The compiled version of a fused decoder, whose weights it takes; None: there is none.

    `model` is emptied layer by layer, so that memory for one layer more than the model's is enough.
    """
    if not isinstance(model, FusedDecoder) or not isinstance(model.rotary, FusedRotary):
        return None
    pack = weights.packer(library)
    if pack is None:
        return None
    found = [_parts(layer) for layer in model.layers]
    sizes = {attention.rotary_size for attention, _ in filter(None, found)} - {0}
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        return None
    head, norm = model.head, model.norm
    if None in found or len(sizes) > 1 or not isinstance(norm, FusedRMSNorm):
        return None
    if type(head) is not nn.Linear:
        return None
    options = [(parts[0].layer_idx, parts[0].options) for parts in found if parts]
    sites = _sites(model, library.lanes)
    del found
    layers = [_weights(library, model.take(index), pack) for index in range(len(model.layers))]
    packed_head = pack(head.weight, head.bias)
    compiled = CompiledDecoder(
        _embedding(library, model.embedding, head, packed_head, weights),
        model.rotary,
        NativeLayers(library, layers, _norm(norm), packed_head),
        options,
        sites,
    )
    logger.info(
        "%d layers compiled for %s, in %s: %d MiB of weights",
        len(layers),
        library.name,
        weights.name,
        compiled.stored_bytes >> 20,
    )
    return compiled


def _parts(layer: nn.Module) -> tuple[FusedAttention, FusedFeedForward] | None:
    """Attention and feed-forward block of a layer that can be compiled."""
    if not isinstance(layer, FusedLayer):
        return None
    attention, feed_forward = layer.attention, layer.feed_forward
    norms = (layer.norm, layer.after, *attention.norms)
    if not all(isinstance(norm, FusedRMSNorm) for norm in norms):
        return None
    if any(norm.scaled_weight.shape[0] != attention.shape.key_size for norm in attention.norms):
        return None
    if not isinstance(feed_forward, FusedFeedForward):
        return None
    return (attention, feed_forward) if feed_forward.is_silu else None


def _sites(model: FusedDecoder, lanes: int) -> list[Site]:
    """The linear layers in the order of `LINEARS`, layer by layer, and the head."""
    return [
        _interleaved(place.site, lanes) if place.name == "gate_up" else place.site
        for place in linear_places(model)
    ]


def _interleaved(site: Site, lanes: int) -> Site:
    sources = interleaved(torch.arange(site.outputs), lanes)
    return Site(inputs=site.inputs, outputs=len(sources), origins=reordered(site.origins, sources))


def _embedding(
    library: Library, table: nn.Module, head: nn.Linear, packed_head: Packed, weights: WeightFormat
) -> nn.Module:
    """The embedding, which shares the head's packed weights where it shares its numbers."""
    if type(table) is not nn.Embedding or table.max_norm is not None:
        return table
    if table.weight is head.weight and weights.keeps_numbers:
        return NativeEmbedding(library, packed_head)
    return NativeEmbedding(library, pack_numbers(library, table.weight, None))


def _weights(library: Library, layer: Any, pack: Pack) -> LayerWeights:
    attention, block, shape = layer.attention, layer.feed_forward, layer.attention.shape
    of_queries, of_keys = (*map(_norm, attention.norms), None, None)[:2]
    gate_up = _in_turns(block.gate_up, library.lanes)
    return LayerWeights(
        before=_norm(layer.norm),
        after=_norm(layer.after),
        of_queries=of_queries,
        of_keys=of_keys,
        qkv=pack(attention.qkv.weight, attention.qkv.bias),
        out=pack(attention.out.weight, attention.out.bias),
        gate_up=pack(gate_up.weight, gate_up.bias),
        down=pack(block.down.weight, block.down.bias),
        gates=block.down.in_features,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        key_size=shape.key_size,
        value_size=shape.value_size,
        rotary_size=attention.rotary_size,
        options=attention.options,
    )


def _in_turns(gate_up: nn.Linear, lanes: int) -> nn.Linear:
    """The layer with its outputs reordered: gates and ups interleaved."""

    def parameter(both: Tensor) -> nn.Parameter:
        return nn.Parameter(interleaved(both, lanes), requires_grad=False)

    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.weight = parameter(gate_up.weight)
    if gate_up.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        layer.bias = parameter(gate_up.bias)
    return layer


def _norm(norm: FusedRMSNorm) -> RMSNorm:
    return RMSNorm(weight=norm.scaled_weight.contiguous(), floor=float(norm.floor.square()))
