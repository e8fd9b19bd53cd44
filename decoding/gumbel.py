"""Counter-based Gumbel noise: the same number for the same (seed, position, token id), always.

Sampling by `argmax(logits / T + gumbel)` draws from softmax(logits / T) (Gumbel 1954; Maddison et
al. 2014). With noise that is a pure function of its coordinates, the token drawn is a pure
function of the prefix: batch mates, chunking, caching, preemption and drafting cannot change it.
"""

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)
# Odd multipliers of 32-bit finalisers (Wellons, "Prospecting for Hash Functions"), as int32.
_MUL_1 = 0x7FEB352D
_MUL_2 = 0x846CA68B - 2**32
_MUL_3 = 0x9E3779B1 - 2**32


def row_keys(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Two 32-bit keys per row: int32 `[R, 2]` from uint64 seeds `[R]` and positions `[R]`."""
    with np.errstate(over="ignore"):
        mixed = _splitmix(_splitmix(seeds) + positions.astype(np.uint64) * _GOLDEN)
    return mixed.view(np.int32).reshape(-1, 2)


def derive_seed(seed: int, index: int) -> int:
    """Seed of choice `index` of a request; choice 0 keeps the request's own seed."""
    if index == 0:
        return seed
    with np.errstate(over="ignore"):
        base = np.uint64(seed & 0xFFFFFFFFFFFFFFFF) + np.uint64(index) * _GOLDEN
        return int(_splitmix(base))


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
    # 24 bits, centred in their cell: never 0 nor 1, and small values keep their precision.
    uniform = ((x >> 8) & 0xFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _xor_shift(x: Tensor, bits: int) -> None:
    """`x ^= x >> bits` with a logical shift, which torch does not have for int32."""
    x.bitwise_xor_((x >> bits).bitwise_and_((1 << (32 - bits)) - 1))


def _splitmix(x: np.ndarray | np.uint64) -> np.ndarray:
    """SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words that mixes all bits."""
    z = np.asarray(x, dtype=np.uint64) + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _MIX_A
    z = (z ^ (z >> np.uint64(27))) * _MIX_B
    return z ^ (z >> np.uint64(31))
