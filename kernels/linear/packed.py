"""A float32 linear layer for CPUs that picks its kernel by the number of rows.

`plain` reads the weights as they are, in torch's own product. `sliced` reads them as a batch of
slices, one product each: some libraries (MKL on an AMD processor) use all threads for a batch where
they use one for a product with a vector. `packed` reads a copy that oneDNN has laid out for its
matrix kernels, fastest from a few rows on. Where the borders are depends on processor, threads and
shape, so it is measured when the model is loaded.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kernel = Literal["plain", "sliced", "packed"]
KERNELS: Final[tuple[Kernel, ...]] = ("plain", "sliced", "packed")
Times = dict[Kernel, list[float]]
"""Seconds of one call, for each number of `ROWS`."""
Choice = tuple[Kernel, ...]
"""The kernel for 1 row, up to 2, up to 4 and so on; the last one also for all above."""

ROWS: Final = (1, 2, 4, 8, 16, 32)
PASSES: Final = 3
_MOST_SLICES: Final = 64
"""More than threads, so that all have work; a slice of a few rows is as fast as a long one."""


class PackedLinear(nn.Module):
    """y = x W^T + b, for x `[..., K]` float32; keeps only the layouts that `choice` names."""

    def __init__(self, weight: Tensor, bias: Tensor | None, choice: Choice) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.choice = choice
        as_it_is = "plain" in choice or "sliced" in choice
        self.weight = weight.detach() if as_it_is else None
        self.bias = None if bias is None else bias.detach()
        self.slices = slices(weight.detach()) if "sliced" in choice else None
        self.packed = pack(weight) if "packed" in choice else None

    def forward(self, x: Tensor) -> Tensor:
        """`[..., N]`."""
        rows = x.numel() // self.in_features
        kernel = self.choice[min((rows - 1).bit_length(), len(self.choice) - 1)]
        if kernel == "plain":
            assert self.weight is not None
            return F.linear(x, self.weight, self.bias)
        if kernel == "sliced":
            assert self.slices is not None
            return sliced_linear(x, self.slices, self.bias)
        assert self.packed is not None
        return packed_linear(x, self.packed, self.bias)


def slices(weight: Tensor) -> Tensor:
    """Weights `[N, K]` as slices `[S, N / S, K]`: a view."""
    return weight.unflatten(0, (math.gcd(weight.shape[0], _MOST_SLICES), -1))


def sliced_linear(x: Tensor, slices: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` with weights as `slices` gives them."""
    count, _, size = slices.shape
    rows = x.reshape(x.numel() // size, size)  # there may be none
    out = torch.bmm(slices, rows.t().expand(count, -1, -1))
    out = out.view(1, -1) if rows.shape[0] == 1 else out.flatten(0, 1).t().contiguous()
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], out.shape[-1])


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
    sliced = [slices(weight) for weight in weights]
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
                    elif kernel == "sliced":
                        sliced_linear(x, sliced[i], None)
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
    as_it_is: tuple[Kernel, ...] = ("plain", "sliced")
    best_s = [min(times_s[kernel][i] for kernel in as_it_is) for i in range(len(ROWS))]
    kernels = KERNELS
    if one_layout:
        # Relative times: small steps are the common ones, and would count least otherwise.
        pairs = list(zip(best_s, times_s["packed"], strict=True))
        ratio = sum(packed_s / plain_s - plain_s / packed_s for plain_s, packed_s in pairs)
        kernels = ("packed",) if ratio < 0 else as_it_is
    return tuple(
        min(kernels, key=lambda kernel: times_s[kernel][i])  # the first of equals
        for i in range(len(ROWS))
    )
