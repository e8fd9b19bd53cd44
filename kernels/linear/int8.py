"""A linear layer with 8-bit weights and 8-bit activations, exact in between.

    w_nk ~ s_n W_nk      s_n = max_k |w_nk| / 127      (one scale an output channel, fixed)
    x_tk ~ r_t X_tk      r_t = max_k |x_tk| / 127      (one scale a row, found when it comes)
    y_tn = r_t s_n sum_k X_tk W_nk + b_n               (the sum in 32-bit integers)

A row has a scale of its own and integer sums have no order: what a row gives depends on no other
row. The scheme of vLLM's W8A8 and of LLM.int8() without outliers (Dettmers et al. 2022,
arXiv:2208.07339).
"""

import math
from typing import Any, Final

import torch
from torch import Tensor, nn

_MULTIPLE: Final = 16
_MOST_INPUTS: Final = (2**31 - 1) // (127 * 127)
"""A sum of more products may need more than 32 bits."""
_CUDA_ROWS: Final = 32
"""`torch._int_mm` wants more than 16 rows on CUDA."""
_LARGEST: Final = 127.0
_SMALLEST_SCALE: Final = 1e-12


class Int8Linear(nn.Module):
    """y = x W^T + b for x `[..., K]` of any float type; weights `[K, N]` int8, scales `[N]`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        values, scale_N1 = quantize_rows(weight.detach().float())
        self.weight_KN = values.t()
        self.scale_N = scale_N1[:, 0].contiguous()
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """`[..., N]` in x's type."""
        values, scale_T1 = quantize_rows(x.reshape(-1, self.in_features).float())
        out = (int_matmul(values, self.weight_KN) * scale_T1).mul_(self.scale_N)
        if self.bias is not None:
            out += self.bias
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)


def fits(weight: Tensor) -> bool:
    """Whether the integer kernels take weights `[N, K]` of this shape."""
    in_multiples = all(size % _MULTIPLE == 0 for size in weight.shape)
    return in_multiples and weight.shape[1] <= _MOST_INPUTS


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Integers in [-127, 127] as int8 and scales `[T, 1]` of float32 `[T, K]`."""
    largest_T1 = torch.linalg.vector_norm(rows, ord=math.inf, dim=1, keepdim=True)
    scale_T1 = largest_T1.div_(_LARGEST).clamp_(min=_SMALLEST_SCALE)
    return (rows / scale_T1).round_().to(torch.int8), scale_T1


def int_matmul(x: Tensor, weight_KN: Tensor) -> Tensor:
    """int8 `[T, K]` times int8 `[K, N]` as int32, for any number of rows."""
    product: Any = torch._int_mm  # pyright: ignore  # torch has no public name for it
    rows = x.shape[0]
    if x.device.type == "cuda" and rows < _CUDA_ROWS:
        x = torch.cat((x, x.new_zeros(_CUDA_ROWS - rows, x.shape[1])))
        return product(x, weight_KN)[:rows]
    return product(x, weight_KN)
