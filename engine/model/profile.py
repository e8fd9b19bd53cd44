"""Memory of a step besides weights and cache, measured once at start-up on CUDA."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...decoding.prefill import Prefill
from ...decoding.sparse_parameters import (
    LEAST_RECENT,
    LEAST_TOKENS,
    MAX_BUCKETS,
    SparsePrefillParameters,
)
from ...decoding.sparse_prefill import SPARSE_PREFILL
from ...kernels.backend import Kernels
from ...kernels.batch import PagedBatch
from ...kvcache.store import KVStore, LayerShape
from ...registry import Choice
from ..attention.interface import AttentionStep, PagedStep
from ..attention.sparse import SparseRows
from ..state.sparse_prefill import SparsePrefillState

logger = logging.getLogger(__name__)


DEAREST = SparsePrefillParameters(method="hash", buckets=MAX_BUCKETS, recent=LEAST_RECENT)
"""The sparse-prefill parameters that take the most memory."""


class Meter(Protocol):
    """Measures the peak of memory in use."""

    def start(self) -> None:
        """Count from the memory in use now."""
        ...

    def peak_bytes(self) -> int:
        """The most memory in use since `start`, beyond what was in use then."""
        ...


class CudaMeter:
    """Reads torch's own memory statistics of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    def start(self) -> None:
        """See `Meter`."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_allocated(self._device)

    def peak_bytes(self) -> int:
        """See `Meter`. Releases torch's cached memory, so that it counts as free."""
        torch.cuda.synchronize(self._device)
        peak = torch.cuda.max_memory_allocated(self._device) - self._before
        torch.cuda.empty_cache()
        return peak


class _Nothing:
    """A stand-in for a step: there are no caches yet, and attention returns zeros."""

    def __call__(
        self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, **how: Any
    ) -> Tensor:
        """Attention of one layer: zeros `[T, H, Dv]`."""
        return q_THD.new_zeros(*q_THD.shape[:2], v_THD.shape[2])


def longest_prompt(
    layers: Sequence[LayerShape],
    kernels: Kernels,
    device: torch.device,
    *,
    rows: int,
    keys: int,
    page_size: int,
    dtype: torch.dtype,
    form: SparsePrefillParameters = DEAREST,
) -> AttentionStep:
    """Sparse attention of the last `rows` rows of a prompt of `keys` keys.

    It takes copies of a layer's keys, and lists of what rows see. All keys lie in one page.
    """
    beginning = [torch.randn(s.kv_heads, LEAST_TOKENS, s.key_size, device=device) for s in layers]
    choice: Choice[Prefill[Any]] = Choice(method=SPARSE_PREFILL, parameters=form)
    sparse_prefill = SparsePrefillState(choice=choice, first=0, until=keys)
    for layer, k_KPD in enumerate(beginning):
        assert sparse_prefill.labeller(layer, k_KPD) is not None, "random keys are evenly spread"
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    sparse = SparseRows(
        rows=slice(0, rows),
        sparse_prefill=sparse_prefill,
        begin=keys - rows,
        pages=[0] * -(-keys // page_size),
        slots=torch.arange(rows, device=device) % page_size,
        page_size=page_size,
        kernels=kernels,
    )
    batch = PagedBatch(
        page_size=page_size, query_starts=[0], kv_lengths=[], tables=[], slots=nothing
    )
    store = KVStore(layers, pages=1, page_size=page_size, dtype=dtype, device=device)
    return PagedStep(
        store=store, batch=batch, kernels=kernels, rows=nothing, row_attention=[sparse]
    )


@torch.inference_mode()
def step_bytes(
    model: nn.Module,
    device: torch.device,
    meter: Meter,
    *,
    rows: int,
    wanted: int,
    attention: AttentionStep | None = None,
) -> int:
    """Peak memory of a step of `rows` rows, `wanted` of which produce logits.

    `attention`: attention that takes memory of its own; none by default. Besides the forward pass,
    two copies of the logits in float32 count, for targets and sampler. A layer's own keys and
    values count as activations. Partial attention results of draft tokens do not count: they are
    at most a few percent of the pool.
    """
    meter.start()
    ids = torch.zeros(1, rows, dtype=torch.int64, device=device)
    logits: Tensor = model(
        input_ids=ids,
        position_ids=torch.arange(rows, device=device)[None],
        use_cache=False,
        logits_to_keep=torch.arange(rows - wanted, rows, device=device),
        penstock_step=attention or _Nothing(),
    ).logits[0]
    raw = logits.float()
    _ = raw.softmax(-1)
    peak = meter.peak_bytes()
    logger.info("a step of %d rows takes %d MiB beside weights and KV cache", rows, peak >> 20)
    return peak
