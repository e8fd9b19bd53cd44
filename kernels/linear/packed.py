"""A float32 linear layer for CPUs that picks its kernel by the number of rows.

`plain` reads the weights as they are (MKL or OpenBLAS: fastest for one row or two), `packed` reads
a copy that oneDNN has laid out for its matrix kernels (fastest from a few rows on). Where the
border is depends on processor, threads and shape, so it is measured when the model is loaded.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kernel = Literal["plain", "packed"]
KERNELS: Final[tuple[Kernel, ...]] = ("plain", "packed")
Times = dict[Kernel, list[float]]
"""Seconds of one call, for each number of `ROWS`."""
Choice = tuple[Kernel, ...]
"""The kernel for 1 row, up to 2, up to 4 and so on; the last one also for all above."""

ROWS: Final = (1, 2, 4, 8, 16, 32)
PASSES: Final = 3


class PackedLinear(nn.Module):
    """y = x W^T + b, for x `[..., K]` float32; keeps only the layouts that `choice` names."""

    def __init__(self, weight: Tensor, bias: Tensor | None, choice: Choice) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.choice = choice
        self.weight = weight.detach() if "plain" in choice else None
        self.bias = None if bias is None else bias.detach()
        self.packed = pack(weight) if "packed" in choice else None

    def forward(self, x: Tensor) -> Tensor:
        """`[..., N]`."""
        rows = x.numel() // self.in_features
        kernel = self.choice[min((rows - 1).bit_length(), len(self.choice) - 1)]
        if kernel == "plain":
            assert self.weight is not None
            return F.linear(x, self.weight, self.bias)
        assert self.packed is not None
        return packed_linear(x, self.packed, self.bias)


def pack(weight: Tensor) -> Tensor:
    """Weights `[N, K]` float32 in oneDNN's own layout: an opaque copy."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` with weights that `pack` has made."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def is_available() -> bool:
    """Whether torch was built with oneDNN."""
    return torch.backends.mkldnn.is_available()


@torch.inference_mode()
def measure(
    weights: Sequence[Tensor], clock: Callable[[], float] = time.perf_counter
) -> dict[torch.Size, Times]:
    """Seconds of each kernel by shape and number of rows, as in a pass over a model.

    `weights`: of several layers, `[N, K]` each, in the model's order. One pass calls all of them
    with one kernel, so that each finds in the caches what it would find there in service.
    """
    packed = [pack(weight) for weight in weights]
    found: dict[torch.Size, Times] = {
        weight.shape: {kernel: [] for kernel in KERNELS} for weight in weights
    }
    for rows in ROWS:
        inputs = {weight.shape[1]: torch.randn(rows, weight.shape[1]) for weight in weights}
        for kernel in KERNELS:
            best_s = [float("inf")] * len(weights)
            for _ in range(PASSES):
                for i, weight in enumerate(weights):
                    x = inputs[weight.shape[1]]
                    begun_s = clock()
                    if kernel == "plain":
                        F.linear(x, weight)
                    else:
                        packed_linear(x, packed[i], None)
                    best_s[i] = min(best_s[i], clock() - begun_s)
            for shape, times_s in found.items():
                alike = [s for s, w in zip(best_s, weights, strict=True) if w.shape == shape]
                times_s[kernel].append(statistics.median(alike))
    return found


def choose(times_s: Times, *, one_layout: bool) -> Choice:
    """The fastest kernel for each number of rows, or the best single one over all of them.

    `one_layout`: keep the weights once, where there is no memory for two copies.
    """
    if one_layout:
        # Relative times: small steps are the common ones, and would count least otherwise.
        pairs = list(zip(times_s["plain"], times_s["packed"], strict=True))
        ratio = sum(packed_s / plain_s - plain_s / packed_s for plain_s, packed_s in pairs)
        return ("packed",) if ratio < 0 else ("plain",)
    return tuple(
        "plain" if plain_s <= packed_s else "packed"
        for plain_s, packed_s in zip(times_s["plain"], times_s["packed"], strict=True)
    )
