"""The bridge from transformers' attention interface to our kernels.

transformers calls the registered function once a layer; the step's geometry arrives as a keyword
argument of the model call, so that nothing is global but the name "penstock".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ...kernels.backend import TORCH, Kernels
from ...kernels.batch import PagedBatch
from ...kernels.decoder.native import EvictingRows
from ...kvcache.store import KVStore, LayerShape
from .delivery import delivered
from .write import written

NAME = "penstock"

AttentionStep = Callable[..., Tensor]


class RowAttention(Protocol):
    """Rows that need an attention function of their own: evicting or sparse."""

    @property
    def rows(self) -> slice | Tensor:
        """Which rows of the step."""
        ...

    def attend(
        self, layer: int, q_RHD: Tensor, k_RKD: Tensor, v_RKD: Tensor, store: KVStore, **how: Any
    ) -> Tensor:
        """One layer; returns `[R, H, Dv]`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedStep:
    """Attention of one step: writes the rows' keys and values, then attends over the pages.

    `batch`: the geometry of the ordinary rows. `rows`: int64, their indices if other rows
    have a `row_attention`; None: all rows. `kernels`: for the ordinary rows; the others have their
    own. `evicting`: what contexts in `batch` need that are under eviction; for `CompiledDecoder`
    alone, and for no others than steps that are `in_one_call`.
    """

    store: KVStore
    batch: PagedBatch
    kernels: Kernels = TORCH
    rows: Tensor | None = None
    row_attention: Sequence[RowAttention] = ()
    evicting: EvictingRows | None = None

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
        assert self.evicting is None, "whole steps take them"
        how = {"scale": scale, "window": window, "softcap": softcap, "sinks_H": sinks_H}
        if self.rows is None:
            return self._ordinary(layer, q_THD, k_THD, v_THD, how)
        out = q_THD.new_empty(*q_THD.shape[:2], v_THD.shape[2])
        if self.rows.numel():
            rows = self.rows
            out[rows] = self._ordinary(layer, q_THD[rows], k_THD[rows], v_THD[rows], how)
        for one in self.row_attention:
            of = one.rows
            out[of] = one.attend(layer, q_THD[of], k_THD[of], v_THD[of], self.store, **how)
        return out

    @property
    def in_one_call(self) -> bool:
        """Whether compiled layers may do the step: ordinary rows, "native" kernels, float32."""
        ordinary = self.rows is None and self.kernels.backend == "native"
        return ordinary and self.store.dtype == torch.float32

    def _ordinary(
        self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, how: dict[str, Any]
    ) -> Tensor:
        kernels, slots = self.kernels, self.batch.slots
        caches, scales = written(kernels, self.store, layer, k_THD, v_THD, slots)
        return kernels.paged_attention(q_THD, *caches, self.batch, **how, **scales)


class UndeliveredError(TypeError):
    """The step did not reach attention: see `deliver_steps`."""


class Probe:
    """Stands in for a step: records what reaches attention and lets no token see another."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}
        self.passes_window = False
        self.full: list[dict[str, Any]] = []
        self.queries: list[Tensor] = []
        self.keys: list[Tensor] = []

    def __call__(
        self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, **options: Any
    ) -> Tensor:
        """Record shapes, queries and keys; returns zeros of the right shape."""
        self.passes_window |= options["window"] is not None
        if options["window"] is None:
            self.full.append(options)
        self.layers[layer] = LayerShape(
            kv_heads=k_THD.shape[1],
            key_size=k_THD.shape[2],
            value_size=v_THD.shape[2],
            window=options["window"],
        )
        self.queries.append(q_THD)
        self.keys.append(k_THD)
        return q_THD.new_zeros(q_THD.shape[0], q_THD.shape[1], v_THD.shape[2])


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    penstock_step: AttentionStep | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """transformers' signature: query `[1, H, T, D]`, key and value `[1, Hkv, T, D]`."""
    step = penstock_step or delivered(module)
    if step is None:
        raise UndeliveredError
    out = step(
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        window=sliding_window,
        softcap=softcap,
        sinks_H=s_aux,
    )
    return out[None].contiguous(), None  # some models view it in another shape


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Build no mask; the kernels derive it from the batch's geometry."""


def register() -> None:
    """Make `attn_implementation="penstock"` known to transformers. Harmless to repeat."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _no_mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a probe learned of a model.

    `layers`: shapes by the index that the layer reports. `vocab_size`: logits of a row.
    `passes_window`: some layer passes its sliding window. `mixes_elsewhere`: tokens see each other
    outside attention (a recurrent state, a convolution). `ignores_positions`: the model numbers the
    rows itself. `sparse_unsupported_reason`: why sparse prefill cannot be used; None: it can."""

    layers: dict[int, LayerShape]
    vocab_size: int
    passes_window: bool
    mixes_elsewhere: bool
    ignores_positions: bool
    sparse_unsupported_reason: str | None

    @property
    def in_order(self) -> list[LayerShape]:
        """The shapes of layers 0, 1, 2 and so on."""
        return [self.layers[i] for i in range(len(self.layers))]


def probe_model(model: nn.Module, tokens: Sequence[int]) -> Findings:
    """Run four tiny forward passes in which attention passes nothing between tokens.

    `tokens`: at least four token ids whose logits are finite.
    """
    a, b, c, d = tokens[:4]
    base, logits = _probe(model, ids=[a, b, c], positions=[0, 1, 2])
    _, other = _probe(model, ids=[d, b, c], positions=[0, 1, 2])
    spread, _ = _probe(model, ids=[a, a, a], positions=[4, 1, 0])
    swapped, _ = _probe(model, ids=[a, a, a], positions=[0, 1, 4])
    pairs = [
        *zip(spread.queries, swapped.queries, strict=True),
        *zip(spread.keys, swapped.keys, strict=True),
    ]
    return Findings(
        layers=base.layers,
        vocab_size=logits.shape[-1],
        passes_window=base.passes_window,
        mixes_elsewhere=not _close(logits[1:], other[1:]),
        ignores_positions=not all(_close(a, b.flip(0)) for a, b in pairs),
        sparse_unsupported_reason=_sparse_unsupported_reason(base.full),
    )


def _probe(model: nn.Module, *, ids: list[int], positions: list[int]) -> tuple[Probe, Tensor]:
    probe = Probe()
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            penstock_step=probe,
        ).logits[0]
    return probe, logits


def _sparse_unsupported_reason(full: Sequence[dict[str, Any]]) -> str | None:
    """Why not, as the rest of a sentence; `full`: options of layers without a sliding window."""
    if not full:
        return "all its layers have sliding windows, and see few keys anyway"
    if any(options["softcap"] is not None for options in full):
        return "its attention logits are capped"
    if any(options["sinks_H"] is not None for options in full):
        return "its attention has sinks"
    return None


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether they are equal up to rounding, which may differ where experts get other batches."""
    tolerance = 1e-4 if a.dtype == torch.float32 else 3e-2
    a, b = a.float(), b.float()
    return float((a - b).abs().max()) <= tolerance * float(a.abs().mean()) + 1e-12
