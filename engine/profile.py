"""What a step takes beside weights and cache: measured once at start-up, on CUDA."""

import logging
from typing import Any, Protocol

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


class Meter(Protocol):
    """Says how much memory was in use at most."""

    def start(self) -> None:
        """What is in use now is where to count from."""
        ...

    def peak_bytes(self) -> int:
        """The most that came on top since."""
        ...


class CudaMeter:
    """Torch's own count of a device's memory."""

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
        """See `Meter`. Gives back what torch holds in reserve, so that it counts as free."""
        torch.cuda.synchronize(self._device)
        peak = torch.cuda.max_memory_allocated(self._device) - self._before
        torch.cuda.empty_cache()
        return peak


class _Nothing:
    """In a step's place: no caches yet, and attention's results are zeros."""

    def __call__(
        self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, **how: Any
    ) -> Tensor:
        """One layer."""
        return q_THD.new_zeros(*q_THD.shape[:2], v_THD.shape[2])


@torch.inference_mode()
def step_bytes(
    model: nn.Module,
    device: torch.device,
    meter: Meter,
    *,
    rows: int,
    wanted: int,
) -> int:
    """The most that a step of so many rows takes, `wanted` of which produce logits.

    Beside the model's pass these are two copies of the logits in float32, for targets and sampler.
    A layer's own keys and values count as activations. Drafts' partial results of attention do not:
    they are bounded by the pool, and a few percent of it.
    """
    meter.start()
    ids = torch.zeros(1, rows, dtype=torch.int64, device=device)
    logits: Tensor = model(
        input_ids=ids,
        position_ids=torch.arange(rows, device=device)[None],
        use_cache=False,
        logits_to_keep=torch.arange(rows - wanted, rows, device=device),
        penstock_step=_Nothing(),
    ).logits[0]
    raw = logits.float()
    _ = raw.softmax(-1)
    peak = meter.peak_bytes()
    logger.info("a step of %d rows takes %d MiB beside weights and KV cache", rows, peak >> 20)
    return peak
