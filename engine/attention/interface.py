"""The bridge from transformers' attention interface to our kernels.

transformers calls the registered function once a layer; the step's geometry arrives as a keyword
argument of the model call, so that nothing is global but the name "penstock".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ...kernels.backend import TORCH, Kernels
from ...kernels.batch import PagedBatch
from ...kernels.decoder.native import EvictingRows
from ...kvcache.store import KVStore, LayerShape
from ..recurrent.modules import AttentionStep, Stateful, find_states, fresh_rows, take_in_parts
from .delivery import delivered
from .write import written

NAME = "penstock"
NOTHING_KEPT: Final = LayerShape(kv_heads=1, key_size=1, value_size=1)
"""Stands for the layers of a model without attention, whose pages are never written."""


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
        self.given: list[Tensor] = []
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
        self.given += (q_THD, k_THD, v_THD)
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
    outside attention, and outside of states that we keep. `ignores_positions`: the model numbers
    the rows itself. `sparse_unsupported_reason`: why sparse prefill cannot be used; None: it can.
    `stateful`: which modules have states beside keys and values; None: none have."""

    layers: dict[int, LayerShape]
    vocab_size: int
    passes_window: bool
    mixes_elsewhere: bool
    ignores_positions: bool
    sparse_unsupported_reason: str | None
    stateful: Stateful | None = None

    @property
    def in_order(self) -> list[LayerShape]:
        """The shapes of the layers that have keys and values, in the model's order."""
        return [self.layers[i] for i in sorted(self.layers)] or [NOTHING_KEPT]


def probe_model(model: nn.Module, tokens: Sequence[int]) -> Findings:
    """Run a few tiny forward passes in which nothing is passed between tokens, by attention.

    If something is, the model may have states; then its modules are changed to take those of a step
    in parts, and no state is passed either. `tokens`: at least four token ids whose logits are
    finite.
    """
    found = _probe_rows(model, tokens, None)
    if not found.mixes_elsewhere:
        return found
    stateful = find_states(model, partial(_run, model, Probe(), tokens[:3], [0, 1, 2]))
    if stateful is None:
        return found
    take_in_parts(model, stateful.modules)
    return _probe_rows(model, tokens, stateful)


def _probe_rows(model: nn.Module, tokens: Sequence[int], stateful: Stateful | None) -> Findings:
    """What is found where each row is a sequence of its own."""
    a, b, c, d = tokens[:4]
    probe = partial(_probe, model, stateful)
    base, logits = probe(ids=[a, b, c], positions=[0, 1, 2])
    changed, other = probe(ids=[d, b, c], positions=[0, 1, 2])
    spread, _ = probe(ids=[a, a, a], positions=[4, 1, 0])
    swapped, _ = probe(ids=[a, a, a], positions=[0, 1, 4])
    pairs = [
        *zip(spread.queries, swapped.queries, strict=True),
        *zip(spread.keys, swapped.keys, strict=True),
    ]
    return Findings(
        layers=base.layers,
        vocab_size=logits.shape[-1],
        passes_window=base.passes_window,
        mixes_elsewhere=not all(
            _close(x[1:], y[1:])
            for x, y in ((logits, other), *zip(base.given, changed.given, strict=True))
        ),
        ignores_positions=not all(_close(a, b.flip(0)) for a, b in pairs),
        sparse_unsupported_reason=_sparse_unsupported_reason(base),
        stateful=stateful
        and replace(stateful, numbers={layer: i for i, layer in enumerate(sorted(base.layers))}),
    )


def _probe(
    model: nn.Module, stateful: Stateful | None, *, ids: list[int], positions: list[int]
) -> tuple[Probe, Tensor]:
    probe = Probe()
    if stateful is None:
        return probe, _run(model, probe, ids, positions)
    states = fresh_rows(stateful.shapes, len(ids), next(model.parameters()).device)
    step = stateful.as_reported(probe, states)
    return probe, _run(model, step, ids, positions, stateful.argument, states)


def _run(
    model: nn.Module,
    step: AttentionStep,
    ids: Sequence[int],
    positions: Sequence[int],
    argument: str | None = None,
    cache: Any = None,
) -> Tensor:
    """Logits `[T, V]` of a forward pass, which is given `cache` as `argument`."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        return model(
            input_ids=torch.tensor([list(ids)], device=device),
            position_ids=torch.tensor([list(positions)], device=device),
            use_cache=False,
            penstock_step=step,
            **({} if argument is None else {argument: cache}),
        ).logits[0]


def _sparse_unsupported_reason(probe: Probe) -> str | None:
    """Why not, as the rest of a sentence."""
    full = probe.full
    if not probe.layers:
        return "it has no attention"
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
