"""4-bit NormalFloat (Dettmers et al. 2023, arXiv:2305.14314) as a weight format of Penstock.

    w_nk ~ s_nb CODE[c_nk]      s_nb = max |w| of the block, 64 inputs of one output

16 values, the quantiles of a normal distribution; 0.53 bytes a weight. Weights are expanded for
each product: an eighth of the memory of float32, at the price of time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.engine.weights.base import WeightFormat
from penstock.kernels.native.library import Library

BLOCK = 64
# fmt: off
CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)
# fmt: on


class NF4Linear(nn.Module):
    """y = x W^T + b. `codes`: two in a byte, `[N, K / 2]`; `scales`: float16 `[N, K / 64]`."""

    codes: Tensor
    scales: Tensor
    values: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        blocks_NB64 = weight.detach().float().unflatten(1, (-1, BLOCK))
        scales_NB = blocks_NB64.abs().amax(dim=2).clamp(min=2.0**-14).half()
        values = torch.tensor(CODE, device=weight.device)
        # The nearest of the values: as many are below a weight as there are midpoints below it.
        midpoints = (values[1:] + values[:-1]) / 2
        scaled = (blocks_NB64 / scales_NB.float()[..., None]).flatten(1)
        codes_NK = torch.bucketize(scaled, midpoints).to(torch.uint8)
        self.register_buffer("codes", codes_NK[:, ::2] << 4 | codes_NK[:, 1::2])
        self.register_buffer("scales", scales_NB)
        self.register_buffer("values", values)
        self.bias = None if bias is None else bias.detach()

    def dense(self) -> Tensor:
        """The weight `[N, K]` that the codes stand for, in float32."""
        codes = torch.stack((self.codes >> 4, self.codes & 15), dim=2).flatten(1)
        blocks_NB64 = self.values[codes.int()].unflatten(1, (-1, BLOCK))
        return (blocks_NB64 * self.scales.float()[..., None]).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., N]` in x's type."""
        return F.linear(x, self.dense().to(x.dtype), self.bias)


class NF4(WeightFormat):
    """Linear layers with 4-bit weights, where the number of inputs is a multiple of 64."""

    name = "nf4"

    def stored_bytes(self, weight: Tensor) -> int:
        """Half a byte a weight, and a scale of two bytes a block."""
        return weight.numel() // 2 + 2 * weight.numel() // BLOCK

    def linear(
        self, weight: Tensor, bias: Tensor | None, library: Library | None
    ) -> nn.Module | None:
        """See `WeightFormat`."""
        return NF4Linear(weight, bias) if weight.shape[1] % BLOCK == 0 else None


NF4_FORMAT = NF4()
