"""The bridge from transformers' attention interface to our kernels.

transformers calls the registered function once a layer; the step's geometry arrives as a keyword
argument of the model call, so that nothing is global but the name "penstock".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ..kernels.batch import PagedBatch
from ..kernels.kv_write.reference import kv_write
from ..kernels.paged_attention.reference import paged_attention
from ..kvcache.store import KVStore, LayerShape

NAME = "penstock"

AttentionStep = Callable[..., Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedStep:
    """Attention of one step: writes the rows' keys and values, then attends over the pages."""

    store: KVStore
    batch: PagedBatch

    def __call__(
        self,
        layer: int,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks_H: Tensor | None,
    ) -> Tensor:
        """One layer; returns `[T, H, Dv]`."""
        k_cache, v_cache = self.store.keys[layer], self.store.values[layer]
        kv_write(k_THD, v_THD, k_cache, v_cache, self.batch.slots)
        return paged_attention(
            q_THD,
            k_cache,
            v_cache,
            self.batch,
            scale=scale,
            window=window,
            softcap=softcap,
            sinks_H=sinks_H,
        )


class ShapeProbe:
    """Stands in for a step to learn each layer's key and value shapes, and that it is called."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}

    def __call__(
        self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, **options: Any
    ) -> Tensor:
        """Record the shapes; returns zeros of the right shape."""
        self.layers[layer] = LayerShape(
            kv_heads=k_THD.shape[1], key_size=k_THD.shape[2], value_size=v_THD.shape[2]
        )
        return q_THD.new_zeros(q_THD.shape[0], q_THD.shape[1], v_THD.shape[2])


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    penstock_step: AttentionStep,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """transformers' signature: query `[1, H, T, D]`, key and value `[1, Hkv, T, D]`."""
    out = penstock_step(
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        window=sliding_window,
        softcap=softcap,
        sinks_H=s_aux,
    )
    return out[None], None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Masks follow from the pages; transformers need not build any."""


def register() -> None:
    """Make `attn_implementation="penstock"` known to transformers. Harmless to repeat."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def probe_layers(model: nn.Module, vocab_size: int) -> dict[int, LayerShape]:
    """Shapes of all attention layers that go through the interface, from one tiny forward pass."""
    probe = ShapeProbe()
    device = next(model.parameters()).device
    with torch.inference_mode():
        model(
            input_ids=torch.zeros(1, 2, dtype=torch.int64, device=device),
            position_ids=torch.arange(2, device=device)[None],
            use_cache=False,
            penstock_step=probe,
        )
    return probe.layers
