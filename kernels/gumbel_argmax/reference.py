"""`gumbel_argmax` in plain torch: one token for each row of logits, greedy or drawn.

    u = hash(keys of the row, token id)      in (0, 1), 24 bits
    chosen = argmax_v logits_v / T - log(-log(1 - u_v))

Sampling by `argmax(logits / T + gumbel)` draws from softmax(logits / T) (Gumbel 1954; Maddison et
al. 2014). A row of which nothing can be chosen, because its best value is not finite or one of its
logits is NaN, has `NOTHING`.
"""

from typing import Final

import torch
from torch import Tensor

NOTHING: Final = -1
"""In place of a token's id."""

# Odd multipliers of 32-bit finalisers (Wellons, "Prospecting for Hash Functions"), as int32.
_MUL_1 = 0x7FEB352D
_MUL_2 = 0x846CA68B - 2**32
_MUL_3 = 0x9E3779B1 - 2**32


def argmax(logits_RV: Tensor) -> Tensor:
    """The greedy choice of each row, int64 `[R]`, of float32 `[R, V]`."""
    best, ids = logits_RV.max(dim=-1)  # NaN counts as the largest
    return torch.where(best.abs() < float("inf"), ids, NOTHING)


def gumbel_argmax(
    logits_RV: Tensor, temperature_R1: Tensor, keys_R2: Tensor, greedy_R: Tensor
) -> Tensor:
    """Token ids, int64 `[R]`, for float32 logits.

    temperature_R1: float32, above 0. keys_R2: int32, what a row's noise is a function of, besides
    the token's id. greedy_R: bool, rows that take the best as it is.
    """
    ids = torch.arange(logits_RV.shape[1], dtype=torch.int32, device=logits_RV.device)
    drawn = argmax(logits_RV / temperature_R1 + gumbel_noise(keys_R2, ids))
    return torch.where(greedy_R, argmax(logits_RV), drawn)


def gumbel_noise(keys_R2: Tensor, token_ids_V: Tensor) -> Tensor:
    """Standard Gumbel noise, float32 `[R, V]`, for int32 keys `[R, 2]` and int32 ids `[V]`.

    24 bits of resolution: values lie between -2.9 and 17.4.
    """
    x = token_ids_V * _MUL_3
    x = x ^ keys_R2[:, :1]
    _xor_shift(x, 16)
    x.mul_(_MUL_1)
    _xor_shift(x, 15)
    x.add_(keys_R2[:, 1:])
    x.mul_(_MUL_2)
    _xor_shift(x, 16)
    x.mul_(_MUL_1)
    _xor_shift(x, 15)
    # 24 bits, centred in their cell, so that small values keep their precision; never 0, and never
    # 1, to which the last centre would be rounded.
    uniform = ((x >> 8) & 0xFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-24)
    return uniform.clamp_(max=1 - 2.0**-24).neg_().log1p_().neg_().log_().neg_()


def _xor_shift(x: Tensor, bits: int) -> None:
    """`x ^= x >> bits` with a logical shift, which torch does not have for int32."""
    x.bitwise_xor_((x >> bits).bitwise_and_((1 << (32 - bits)) - 1))
